"""A bounded resource that callers share: queue places, bytes in memory."""


class SharedCapacity:
    """Counts what each caller holds of a resource and says whether it may take more.

    A caller may hold at most `weight` times what is free, so one that fills the resource by itself
    stops at half of it and the next one finds room. This is the dynamic threshold of Choudhury and
    Hahne (IEEE/ACM Transactions on Networking 6(2), 1998) with the weight as its alpha. What a
    caller takes first is granted if it fits, and a caller without a name is only bound by the
    capacity: where callers are not told apart there is nobody to protect.

    Args:
        capacity: All that there is, in any unit.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._num_used = 0
        self._held: dict[str, int] = {}

    @property
    def num_used(self) -> int:
        return self._num_used

    @property
    def num_free(self) -> int:
        return self.capacity - self._num_used

    def held_by(self, caller: str) -> int:
        return self._held.get(caller, 0)

    def has_room(self, caller: str, amount: int, weight: int = 1, guaranteed: int = 0) -> bool:
        """Whether `caller` may take `amount` more.

        Args:
            guaranteed: What it may hold beside its threshold, as far as that is free.
        """
        if amount > self.num_free:
            return False
        held = self.held_by(caller)
        return not caller or not held or held + amount <= guaranteed + weight * self.num_free

    def take(self, caller: str, amount: int) -> None:
        """Count `amount` for `caller`. `has_room` must have agreed."""
        self._num_used += amount
        self._held[caller] = self.held_by(caller) + amount

    def give_back(self, caller: str, amount: int) -> None:
        self._num_used -= amount
        self._held[caller] -= amount
        if not self._held[caller]:
            del self._held[caller]
