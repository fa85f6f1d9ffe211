"""The prefix cache on disk: which blocks are stored and loaded, and the threads that do it.

The engine's thread owns the KV cache. It copies a few blocks between two steps, and no step waits
for the disk.
"""

import queue
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from math import inf
from typing import Literal, Protocol

import numpy as np
import structlog
from numpy.typing import NDArray

from chatrpc_process.logs.limited import LimitedLog
from service.domain.engine import DiskCacheStats
from service.engine.block_files import BlockFiles, DamagedBlock
from service.engine.block_pool import BlockPool
from service.engine.sequence import Sequence

# A shorter prefix is computed in less time than a step with drafts or chunks of others may take.
MIN_TOKENS = 256
# Bytes that are copied into the cache, and out of it, between two steps: about 1 ms each.
_BYTES_PER_STEP = 8 * 2**20
# Bytes of blocks that are read but not yet copied, and of those that are not yet written.
_MAX_WAITING_BYTES = 64 * 2**20
# A block's use is noted on disk at most once in this time, as long as memory has the block too.
_TOUCH_INTERVAL_S = 60.0
# If no block arrives in this time, the prompts are computed instead.
_STALL_S = 2.0
# After a failed write or a stall, the disk is not used for this time.
_PAUSE_S = 30.0
# Interval in which an idle reader looks for blocks of other processes.
_REFRESH_S = 10.0
_STOP_TIMEOUT_S = 2.0
# The times of a prefix's blocks on disk differ by this. So its last blocks are removed before the
# first ones, without which they cannot be used.
_POSITION_NS = 1000

log = structlog.get_logger(__name__)


class BlockMemory(Protocol):
    """The content of the KV cache's blocks; implemented by `BlockBytes`."""

    num_bytes: int

    def read(self, block_id: int) -> NDArray[np.uint8]: ...

    def write(self, block_id: int, content: NDArray[np.uint8]) -> None: ...


@dataclass(slots=True, eq=False)
class _Load:
    """The blocks of a sequence that are read from disk, one after another.

    Attributes:
        end: The number of the sequence's blocks that are computed or loaded after the load.
        used_ns: The time of the lookup in nanoseconds since the epoch.
        num_read: The number of these blocks that are computed, loaded or being read; None until the
            load's turn comes.
    """

    sequence: Sequence
    end: int
    used_ns: int
    num_read: int | None = None


class DiskCache:
    """Stores blocks of prompts in files, and loads them for later sequences.

    A block is stored when a second request uses it, so prompts that occur once are not written. A
    prefix of less than `min_tokens` tokens is neither stored nor loaded.

    A block's key is a hash of the identity and of its prefix, which the pool identifies by its
    tokens, cache salt and namespace. So a file has none of these, and a block is found only by the
    model and the callers that it is for.

    A sequence holds its blocks while they are loaded. If loading fails, or a block has been removed
    meanwhile, the rest of the prompt is computed. Loads take place one after another, so that
    sequences with the same prefix share the blocks that the first has loaded.

    Errors of the disk never fail a request: the service continues without the disk.

    Only the engine's thread calls the methods, except `stats`.

    Args:
        identify: Returns the identity of everything that a block's bits depend on. It is called on
            another thread, and may raise OSError.
    """

    def __init__(
        self,
        files: BlockFiles,
        memory: BlockMemory,
        pool: BlockPool,
        identify: Callable[[], bytes],
        *,
        min_tokens: int = MIN_TOKENS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._files = files
        self._memory = memory
        self._pool = pool
        self._min_tokens = min_tokens
        self._clock = clock
        self._identity: bytes | None = None  # until the directory is open
        self._loads: deque[_Load] = deque()
        self._results: queue.SimpleQueue[tuple[_Load, NDArray[np.uint8] | None]]
        self._results = queue.SimpleQueue()
        self._progress_at = 0.0
        self._loads_resume_at = -inf
        self._is_budget_spent = False
        # Blocks to store: the times of their uses, by the hashes of their prefixes.
        self._to_store: OrderedDict[bytes, int] = OrderedDict()
        self._writing: set[bytes] = set()
        self._writes_resume_at = -inf
        self._num_queries = 0
        self._num_hits = 0
        self._num_read_bytes = 0
        self._num_written_bytes = 0
        self._num_errors = 0
        self._errors_lock = threading.Lock()
        self._limited_log = LimitedLog()
        self._wake: Callable[[], None] = lambda: None
        self._reader = _Worker("prefix-reader", self._refresh)
        self._writer = _Worker("prefix-writer")
        self._reader.put(partial(self._open, identify))

    @property
    def is_open(self) -> bool:
        """True if blocks can be stored and loaded."""
        return self._identity is not None

    @property
    def is_loading(self) -> bool:
        """True while a sequence waits for its blocks."""
        return bool(self._loads)

    @property
    def is_storing(self) -> bool:
        """True while blocks are to be stored."""
        return bool(self._to_store or self._writing)

    @property
    def has_work(self) -> bool:
        """True if `work` has something to do at once."""
        has_turn = bool(self._loads) and self._loads[0].num_read is None
        has_blocks = self._is_budget_spent or not self._results.empty()
        return has_turn or has_blocks or self._can_store

    @property
    def stats(self) -> DiskCacheStats:
        return DiskCacheStats(
            self._files.num_bytes,
            self._num_queries,
            self._num_hits,
            self._num_read_bytes,
            self._num_written_bytes,
            self._files.num_evictions,
            self._num_errors,
        )

    def on_work(self, wake: Callable[[], None]) -> None:
        """Set a function that any thread calls when `has_work` may have become true."""
        self._wake = wake

    def begin(self, sequence: Sequence) -> None:
        """Look up the prefix of a sequence that has just got its blocks.

        The blocks that the sequence found in memory are stored if that is worth it. If enough
        blocks that follow them are on disk, `sequence.is_loading` becomes true and they are loaded.
        """
        if not self.is_open:
            return
        size = self._pool.block_size
        num_found = sequence.num_computed_tokens // size
        most = self._pool.max_cached_blocks(sequence)
        if sequence.num_cached_tokens is None and sequence.index == 0:
            self._num_queries += max(0, most - num_found) * size
            if num_found * size >= self._min_tokens:
                self._note_use(sequence, num_found)
        if self._clock() < self._loads_resume_at:
            return
        end = num_found
        while end < most and self._key(self._pool.prefix_hash(sequence, end + 1)) in self._files:
            end += 1
        if (end - num_found) * size >= self._min_tokens:
            sequence.is_loading = True
            # It may have been preempted during an earlier load.
            self._loads = deque(load for load in self._loads if load.sequence is not sequence)
            self._loads.append(_Load(sequence, end, time.time_ns()))

    def work(self) -> list[Sequence]:
        """Copy a few blocks into the cache and out of it.

        Returns:
            The sequences whose load has ended. `is_loading` is false again.
        """
        ended = self._load_blocks()
        self._store_blocks()
        return ended

    def close(self) -> None:
        """End the threads. Blocks that are to be written are written for a few seconds."""
        self._reader.stop(0)
        self._writer.stop(_STOP_TIMEOUT_S)

    def _key(self, prefix: bytes) -> bytes:
        return sha256((self._identity or b"") + prefix).digest()

    def _note_use(self, sequence: Sequence, num_blocks: int) -> None:
        """Note that another request uses the first blocks of a sequence."""
        now_ns = time.time_ns()
        old: list[tuple[bytes, int]] = []
        for position in range(num_blocks):
            prefix = self._pool.prefix_hash(sequence, position + 1)
            key = self._key(prefix)
            used_ns = now_ns - position * _POSITION_NS
            unused_s = self._files.seconds_since_use(key)
            if unused_s is None and prefix not in self._writing:
                self._to_store[prefix] = used_ns
            elif unused_s is not None and unused_s > _TOUCH_INTERVAL_S:
                old.append((key, used_ns))
        if old:
            self._writer.put(partial(self._touch, old))

    def _load_blocks(self) -> list[Sequence]:
        ended: list[Sequence] = []
        num_bytes = 0
        while self._loads and num_bytes < _BYTES_PER_STEP:
            load = self._loads[0]
            if load.sequence.is_loading and not self._is_complete(load):
                self._read_ahead(load)
                try:
                    owner, content = self._results.get_nowait()
                except queue.Empty:
                    break
                if owner is not load:  # its sequence was preempted or has finished
                    continue
                self._progress_at = self._clock()
                if content is not None:
                    self._place(load.sequence, content)
                    num_bytes += content.nbytes
                    continue
            ended += self._end_first()
        self._is_budget_spent = num_bytes >= _BYTES_PER_STEP
        if not self._loads:
            while not self._results.empty():
                self._results.get_nowait()
        elif self._clock() - self._progress_at > _STALL_S:
            ended += self._end_all()
        return ended

    def _is_complete(self, load: _Load) -> bool:
        return load.sequence.num_computed_tokens >= load.end * self._pool.block_size

    def _read_ahead(self, load: _Load) -> None:
        """Let the reader read the next blocks, as many as may wait to be copied."""
        if load.num_read is None:  # its turn begins
            while not self._is_complete(load) and self._pool.share_cached(load.sequence):
                pass
            load.num_read = load.sequence.num_computed_tokens // self._pool.block_size
            self._progress_at = self._clock()
        num_loaded = load.sequence.num_computed_tokens // self._pool.block_size
        limit = num_loaded + max(1, _MAX_WAITING_BYTES // self._memory.num_bytes)
        for position in range(load.num_read, min(limit, load.end)):
            key = self._key(self._pool.prefix_hash(load.sequence, position + 1))
            used_ns = load.used_ns - position * _POSITION_NS
            self._reader.put(partial(self._read, load, key, used_ns))
            load.num_read = position + 1

    def _place(self, sequence: Sequence, content: NDArray[np.uint8]) -> None:
        """Copy a block into the first block of a sequence that is not computed."""
        size = self._pool.block_size
        self._memory.write(sequence.block_ids[sequence.num_computed_tokens // size], content)
        self._pool.advance(sequence, size)
        self._num_hits += size
        self._num_read_bytes += content.nbytes

    def _end_first(self) -> list[Sequence]:
        """Remove the first load. Return its sequence, unless it does not wait any more."""
        sequence = self._loads.popleft().sequence
        if not sequence.is_loading:
            return []
        sequence.is_loading = False
        return [sequence]

    def _end_all(self) -> list[Sequence]:
        """End all loads because the disk does not answer. Return their sequences."""
        self._fail("read", f"no block has arrived for {_STALL_S:g} s")
        self._loads_resume_at = self._clock() + _PAUSE_S
        ended: list[Sequence] = []
        while self._loads:
            ended += self._end_first()
        return ended

    @property
    def _can_store(self) -> bool:
        has_room = len(self._writing) * self._memory.num_bytes < _MAX_WAITING_BYTES
        return bool(self._to_store) and has_room

    def _store_blocks(self) -> None:
        """Copy blocks that are still in memory, and let the writer write the copies."""
        if self._clock() < self._writes_resume_at:
            self._to_store.clear()
        num_bytes = 0
        while self._can_store and num_bytes < _BYTES_PER_STEP:
            prefix, used_ns = self._to_store.popitem(last=False)
            block_id = self._pool.find(prefix)
            if block_id is None:
                continue
            content = self._memory.read(block_id)
            num_bytes += content.nbytes
            self._writing.add(prefix)
            self._writer.put(partial(self._write, prefix, content, used_ns))

    def _fail(self, operation: Literal["open", "read", "write"], reason: str) -> None:
        """Count an error and log it, unless one of the same operation was logged a moment ago."""
        with self._errors_lock:
            self._num_errors += 1
        self._limited_log.write(
            log.warning,
            "prefix_cache_disk_failed",
            kind=operation,
            operation=operation,
            reason=reason,
            effect="the service continues without the disk",
        )

    # The methods below run on the threads of the reader and of the writer.

    def _open(self, identify: Callable[[], bytes]) -> None:
        try:
            self._files.open()
            self._identity = identify()
        except OSError as error:
            self._fail("open", str(error))
            return
        log.info("prefix_cache_disk_opened", num_bytes=self._files.num_bytes)

    def _read(self, load: _Load, key: bytes, used_ns: int) -> None:
        content = None
        try:
            if load.sequence.is_loading:
                content = self._files.read(key, self._memory.num_bytes, used_ns)
        except DamagedBlock as damaged:
            self._fail("read", f"the file {damaged} was damaged and is removed")
        except OSError as error:
            self._fail("read", str(error))
        self._results.put((load, content))
        if self._results.qsize() == 1:  # otherwise the engine is about to take the others
            self._wake()

    def _write(self, prefix: bytes, content: NDArray[np.uint8], used_ns: int) -> None:
        try:
            if self._clock() >= self._writes_resume_at:
                self._files.write(self._key(prefix), content, used_ns)
                self._num_written_bytes += content.nbytes
        except OSError as error:
            self._writes_resume_at = self._clock() + _PAUSE_S
            self._fail("write", str(error))
        finally:
            self._writing.discard(prefix)
            self._wake()

    def _touch(self, blocks: list[tuple[bytes, int]]) -> None:
        for key, used_ns in blocks:
            self._files.touch(key, used_ns)

    def _refresh(self) -> None:
        if not self.is_open:
            return
        try:
            self._files.refresh()
        except OSError as error:
            self._fail("read", str(error))


class _Worker:
    """A thread that runs jobs one after another. It does not delay the end of the process.

    Args:
        idle: Called when there was no job for `_REFRESH_S`.
    """

    def __init__(self, name: str, idle: Callable[[], None] | None = None) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._idle = idle
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, job: Callable[[], None]) -> None:
        self._jobs.put(job)

    def stop(self, timeout_s: float) -> None:
        """End the thread after the jobs it has. Wait for that at most `timeout_s` seconds."""
        self._jobs.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=None if self._idle is None else _REFRESH_S)
            except queue.Empty:
                job = self._idle
            if job is None:
                return
            try:
                job()
            except Exception:  # the engine continues without the result
                log.exception("prefix_cache_thread_failed")
