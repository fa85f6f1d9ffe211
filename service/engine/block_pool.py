"""Which blocks of the KV cache are free, who holds the others, and what may be shared.

The tensors are elsewhere.
"""

from array import array
from collections import OrderedDict
from hashlib import blake2b, sha256

from service.engine.sequence import Sequence


class BlockPool:
    """`num_blocks` blocks of `block_size` tokens each, every one free or held.

    A full block is cached when it has been computed: a sequence that begins with the same tokens,
    all the way up to the block's end, has the same cache salt and a caller of the same cache
    namespace, holds the block too instead of computing it again. What such a prefix is known by is
    a SHA-256 over all of that, so two that differ are never taken for one another. A cached block
    that nobody holds is free; it stays cached until it is given to somebody else.

    Args:
        has_prefix_caching: False: requests share nothing, but the sequences of one still do.
    """

    def __init__(
        self, num_blocks: int, block_size: int, *, has_prefix_caching: bool = True
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._has_prefix_caching = has_prefix_caching
        # In the order of their reuse. First those with nothing to lose, last freed, first reused:
        # the cache touches no more memory than it must. Then the cached ones, least recently held
        # first.
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._num_holders = [0] * num_blocks
        self._cached: dict[bytes, int] = {}  # block by the hash of the prefix that it ends
        self._hashes: dict[int, bytes] = {}  # the other way round

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_tokens(self) -> int:
        """How many tokens the whole cache holds."""
        return self.num_blocks * self.block_size

    def allocate(
        self, sequence: Sequence, *, num_draft_tokens: int = 0, num_spared: int = 0
    ) -> bool:
        """Give `sequence` the blocks that all its tokens, and so many behind them, need.

        One without any begins with the cached ones; what they hold counts as computed. False, and
        no change, if taking a block would leave fewer than `num_spared` free.
        """
        cached = [] if sequence.block_ids else self._find_cached(sequence)
        num_held = len(sequence.block_ids) + len(cached)
        num_new = -(-(sequence.num_tokens + num_draft_tokens) // self.block_size) - num_held
        num_free = len(self._free) - sum(block_id in self._free for block_id in cached)
        if num_new > 0 and num_new + num_spared > num_free:
            return False
        for block_id in cached:
            self._free.pop(block_id, None)
            self._hold(sequence, block_id)
        sequence.num_computed_tokens += len(cached) * self.block_size
        for _ in range(num_new):
            self._hold(sequence, self._take_free())
        return True

    def advance(self, sequence: Sequence, num_tokens: int) -> None:
        """Take note that the next `num_tokens` of `sequence` are computed, and cache what is full.

        Where another block with the same contents is cached already, that one stays.
        """
        num_full = sequence.num_computed_tokens // self.block_size
        sequence.num_computed_tokens += num_tokens
        if not self._is_shared(sequence):
            return
        for i in range(num_full, sequence.num_computed_tokens // self.block_size):
            prefix, block_id = self._prefix_hash(sequence, i + 1), sequence.block_ids[i]
            if self._cached.setdefault(prefix, block_id) == block_id:
                self._hashes[block_id] = prefix

    def free(self, sequence: Sequence) -> None:
        """Take back every block of `sequence`; what they held is no longer computed.

        The last come first, so that of the cached ones a prefix outlives what follows it.
        """
        for block_id in reversed(sequence.block_ids):
            self._num_holders[block_id] -= 1
            if not self._num_holders[block_id]:
                self._free[block_id] = None
                self._free.move_to_end(block_id, last=block_id in self._hashes)
        sequence.block_ids.clear()
        sequence.num_computed_tokens = 0

    def _find_cached(self, sequence: Sequence) -> list[int]:
        """The cached blocks that `sequence` begins with, but for its last token.

        That one is always computed: what follows it is sampled from what comes out. So is a whole
        prompt whose log probabilities are asked for.
        """
        block_ids: list[int] = []
        if not self._is_shared(sequence) or sequence.positions_without_logprobs:
            return block_ids
        for num_blocks in range(1, (sequence.num_tokens - 1) // self.block_size + 1):
            block_id = self._cached.get(self._prefix_hash(sequence, num_blocks))
            if block_id is None:
                break
            block_ids.append(block_id)
        return block_ids

    def _prefix_hash(self, sequence: Sequence, num_blocks: int) -> bytes:
        """What the first `num_blocks` blocks of `sequence` are known by."""
        hashes = sequence.prefix_hashes
        if not hashes:
            hashes.append(self._salt_hash(sequence))
        while len(hashes) <= num_blocks:
            end = len(hashes) * self.block_size
            token_ids = array("I", sequence.token_ids[end - self.block_size : end])
            hashes.append(sha256(hashes[-1] + token_ids.tobytes()).digest())
        return hashes[num_blocks]

    def _salt_hash(self, sequence: Sequence) -> bytes:
        """The hash before a prefix: equal for the requests that may share it."""
        request, own = sequence.request, str(sequence.request_id)
        namespace = request.caller.cache_namespace
        salt = request.cache_salt if self._has_prefix_caching else own
        # By another function than those of the blocks, so that no salt can pass for a prefix. The
        # length keeps a namespace apart from the salt that follows it.
        return blake2b(f"{len(namespace)}:{namespace}{salt}".encode()).digest()

    def _is_shared(self, sequence: Sequence) -> bool:
        return self._has_prefix_caching or sequence.request.n > 1

    def _hold(self, sequence: Sequence, block_id: int) -> None:
        sequence.block_ids.append(block_id)
        self._num_holders[block_id] += 1

    def _take_free(self) -> int:
        block_id, _ = self._free.popitem(last=False)
        if (prefix := self._hashes.pop(block_id, None)) is not None:
            del self._cached[prefix]
        return block_id
