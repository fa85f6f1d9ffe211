"""A bounded resource that callers share, such as queue slots or bytes in memory."""


class SharedCapacity:
    """Counts each caller's share of a resource and decides whether it may take more.

    A caller may have at most `weight` times the free part. So a caller that fills the resource by
    itself stops at half of it, and other callers still get some. This is the dynamic threshold of
    Choudhury and Hahne (IEEE/ACM Transactions on Networking 6(2), 1998) with the weight as alpha.
    The first amount that a caller takes is granted if it is free. A caller without a name is only
    limited by the capacity, since callers cannot be distinguished then.

    Args:
        capacity: Size of the resource, in the unit of all amounts.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._num_used = 0
        self._held: dict[str, int] = {}

    @property
    def num_used(self) -> int:
        """The amount that all callers together have."""
        return self._num_used

    @property
    def num_free(self) -> int:
        """The amount that no caller has."""
        return self.capacity - self._num_used

    def held_by(self, caller: str) -> int:
        """Return the amount that `caller` has."""
        return self._held.get(caller, 0)

    def has_room(self, caller: str, amount: int, weight: int = 1, guaranteed: int = 0) -> bool:
        """Return True if `caller` may take `amount` more.

        Args:
            guaranteed: The amount that the caller may have in addition to its threshold, if it is
                free.
        """
        if amount > self.num_free:
            return False
        held = self.held_by(caller)
        return not caller or not held or held + amount <= guaranteed + weight * self.num_free

    def take(self, caller: str, amount: int) -> None:
        """Count `amount` for `caller`. `has_room` must have returned True."""
        self._num_used += amount
        self._held[caller] = self.held_by(caller) + amount

    def release(self, caller: str, amount: int) -> None:
        """Free `amount` of the caller's share."""
        self._num_used -= amount
        self._held[caller] -= amount
        if not self._held[caller]:
            del self._held[caller]
