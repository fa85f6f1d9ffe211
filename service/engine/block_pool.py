"""The blocks of the KV cache: free blocks, used blocks and the prefix cache. No tensors."""

from array import array
from collections import OrderedDict
from hashlib import blake2b, sha256

from service.engine.sequence import Sequence


class BlockPool:
    """A pool of blocks of the KV cache. A block is free, or one or more sequences hold it.

    A full block is cached after it has been computed. Another sequence holds it too, instead of
    computing it again, if its tokens up to the block's end, its cache salt and its caller's cache
    namespace are the same. Prefixes are identified by a SHA-256 of all of these, so different
    prefixes are never confused. A cached block that no sequence holds is free, and stays cached
    until it is allocated again.

    Args:
        num_blocks: Total number of blocks.
        block_size: Tokens per block.
        has_prefix_caching: If False, only the sequences of one request share blocks.
    """

    def __init__(
        self, num_blocks: int, block_size: int, *, has_prefix_caching: bool = True
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._has_prefix_caching = has_prefix_caching
        # Ids of the free blocks, in the order of reuse. First come the blocks that are not cached,
        # the last freed first, so that the process writes to as little memory as possible. Then
        # come the cached ones, the least recently held first.
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._num_holders = [0] * num_blocks
        self._cached: dict[bytes, int] = {}  # block ids by the hash of the prefix up to their end
        self._hashes: dict[int, bytes] = {}  # the inverse of `_cached`

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_tokens(self) -> int:
        """Capacity of the cache in tokens."""
        return self.num_blocks * self.block_size

    def allocate(
        self, sequence: Sequence, *, num_draft_tokens: int = 0, num_spared: int = 0
    ) -> bool:
        """Allocate the blocks that a sequence needs for its tokens and `num_draft_tokens` more.

        If it has no blocks yet, it gets those of its longest cached prefix first, and their tokens
        count as computed.

        Args:
            num_spared: Number of blocks that must remain free.

        Returns:
            False, without any change, if there are not enough free blocks.
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
        """Mark the next `num_tokens` tokens of a sequence as computed, and cache its full blocks.

        If a block with the same content is cached already, that one stays cached.
        """
        num_full = sequence.num_computed_tokens // self.block_size
        sequence.num_computed_tokens += num_tokens
        if not self._is_shared(sequence):
            return
        for i in range(num_full, sequence.num_computed_tokens // self.block_size):
            prefix, block_id = self.prefix_hash(sequence, i + 1), sequence.block_ids[i]
            if self._cached.setdefault(prefix, block_id) == block_id:
                self._hashes[block_id] = prefix

    def free(self, sequence: Sequence) -> None:
        """Free every block of a sequence. Its tokens no longer count as computed."""
        # The last block is freed first. So the first blocks of a cached prefix are evicted last.
        for block_id in reversed(sequence.block_ids):
            self._release(block_id)
        sequence.block_ids.clear()
        sequence.num_computed_tokens = 0
        sequence.is_loading = False

    def find(self, prefix: bytes) -> int | None:
        """Return the id of the cached block that ends this prefix; None if there is none.

        Args:
            prefix: A result of `prefix_hash`.
        """
        return self._cached.get(prefix)

    def share_cached(self, sequence: Sequence) -> bool:
        """Replace a sequence's first block that is not computed by a cached block of equal content.

        Its tokens then count as computed.

        Returns:
            False, without any change, if no such block is cached.
        """
        index = sequence.num_computed_tokens // self.block_size
        cached = self._cached.get(self.prefix_hash(sequence, index + 1))
        if cached is None:
            return False
        own = sequence.block_ids[index]
        self._free.pop(cached, None)
        self._num_holders[cached] += 1
        sequence.block_ids[index] = cached
        self._release(own)
        sequence.num_computed_tokens += self.block_size
        return True

    def max_cached_blocks(self, sequence: Sequence) -> int:
        """Return the maximum number of blocks of a sequence that may come from the prefix cache.

        The last token is always computed, because the next one is sampled from its logits. A prompt
        with requested log probabilities is computed completely.
        """
        if not self._is_shared(sequence) or sequence.positions_without_logprobs:
            return 0
        return (sequence.num_tokens - 1) // self.block_size

    def _find_cached(self, sequence: Sequence) -> list[int]:
        """Return the ids of the cached blocks at the start of a sequence."""
        block_ids: list[int] = []
        for num_blocks in range(1, self.max_cached_blocks(sequence) + 1):
            block_id = self._cached.get(self.prefix_hash(sequence, num_blocks))
            if block_id is None:
                break
            block_ids.append(block_id)
        return block_ids

    def prefix_hash(self, sequence: Sequence, num_blocks: int) -> bytes:
        """Return the hash that identifies the first `num_blocks` blocks of a sequence, 32 bytes.

        It depends on their tokens, the cache salt and the caller's namespace.
        """
        hashes = sequence.prefix_hashes
        if not hashes:
            hashes.append(self._salt_hash(sequence))
        while len(hashes) <= num_blocks:
            end = len(hashes) * self.block_size
            token_ids = array("I", sequence.token_ids[end - self.block_size : end])
            hashes.append(sha256(hashes[-1] + token_ids.tobytes()).digest())
        return hashes[num_blocks]

    def _salt_hash(self, sequence: Sequence) -> bytes:
        """Return the hash from which prefix hashes start. Requests that may share blocks have the
        same hash."""
        request, own = sequence.request, str(sequence.request_id)
        namespace = request.caller.cache_namespace
        salt = request.cache_salt if self._has_prefix_caching else own
        # The blocks use another hash function. So no salt can imitate a prefix. The length
        # separates the namespace from the salt.
        return blake2b(f"{len(namespace)}:{namespace}{salt}".encode()).digest()

    def _is_shared(self, sequence: Sequence) -> bool:
        return self._has_prefix_caching or sequence.request.n > 1

    def _hold(self, sequence: Sequence, block_id: int) -> None:
        sequence.block_ids.append(block_id)
        self._num_holders[block_id] += 1

    def _release(self, block_id: int) -> None:
        self._num_holders[block_id] -= 1
        if not self._num_holders[block_id]:
            self._free[block_id] = None
            self._free.move_to_end(block_id, last=block_id in self._hashes)

    def _take_free(self) -> int:
        block_id, _ = self._free.popitem(last=False)
        if (prefix := self._hashes.pop(block_id, None)) is not None:
            del self._cached[prefix]
        return block_id
