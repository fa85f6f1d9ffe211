"""Which blocks of the KV cache are free and which are whose. The tensors are elsewhere."""

from service.engine.sequence import Sequence


class BlockPool:
    """`num_blocks` blocks of `block_size` tokens each, every one free or held by one sequence."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        # Last freed, first reused: the cache touches no more memory than it has ever needed at
        # once.
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_tokens(self) -> int:
        """How many tokens the whole cache holds."""
        return self.num_blocks * self.block_size

    def allocate(self, sequence: Sequence, num_spared: int = 0) -> bool:
        """Give `sequence` the blocks that all its tokens need.

        False, and no change, if that would leave fewer than `num_spared` blocks free.
        """
        num_needed = -(-sequence.num_tokens // self.block_size) - len(sequence.block_ids)
        if num_needed + num_spared > len(self._free):
            return False
        sequence.block_ids.extend(self._free.pop() for _ in range(num_needed))
        return True

    def free(self, sequence: Sequence) -> None:
        """Take back every block of `sequence`; what they held is no longer computed."""
        self._free.extend(reversed(sequence.block_ids))
        sequence.block_ids.clear()
        sequence.num_computed_tokens = 0
