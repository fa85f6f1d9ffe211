"""A runner whose next token is a hash of the context, which it reads from a cache."""

import itertools
import threading
import zlib
from collections.abc import Callable, Container

import numpy as np
from numpy.typing import NDArray

from service.domain.engine import Request
from service.engine.batch import Batch, ScheduledSequence
from service.engine.core import Computed, EngineCore
from service.engine.scheduler import Scheduler
from service.engine.sequence import Sequence
from service.engine.speculation import accept

VOCAB_SIZE = 30
_OVERWRITTEN = (-1, -1)


class WrongCacheError(BaseException):
    """A sequence read a wrong slot.

    It is a BaseException, so that the engine does not handle it as a failed step.
    """


def next_token(token_ids: list[int], draw: float = 0.0) -> int:
    """Return the token that the fake model generates after `token_ids`.

    If the last token occurred before, the token after that occurrence is returned in seven of eight
    cases. So prompt lookup often drafts the right tokens.
    """
    choice = zlib.crc32(repr((token_ids, draw)).encode())
    if choice % 8:
        for i in range(len(token_ids) - 1, 0, -1):
            if token_ids[i - 1] == token_ids[-1]:
                return token_ids[i]
    return choice % VOCAB_SIZE


def answer(request: Request, max_model_len: int, index: int = 0) -> list[int]:
    """Return the output that an engine with a `FakeRunner` must generate, one token at a time."""
    sequence = Sequence(0, request, max_model_len, index)
    while sequence.finish_reason is None:
        sequence.append(_sample(sequence, ()))
    return sequence.token_ids[sequence.num_prompt_tokens :]


def _sample(sequence: Sequence, draft: tuple[int, ...]) -> int:
    """Return the token after a sequence and a part of its draft, with the draw of its position."""
    position = sequence.num_output_tokens + len(draft)
    draw = 0.0 if sequence.request.sampling.is_greedy else sequence.draw(position)
    return next_token([*sequence.token_ids, *draft], draw)


class FakeRunner:
    """`service.engine.core.Runner` with a cache of tokens instead of keys and values.

    Each step reads the whole context of its sequences through the block table. It raises
    WrongCacheError if a slot has not the right token and position: if another sequence wrote to the
    block, or a prefix is wrong or was not recomputed.

    Attributes:
        gate: While it is clear, a step sets `is_waiting` and waits for it.
        error: If it is set, each step overwrites its slots and raises it.
        failing_runs: The numbers of the steps that fail in the same way.
        dead_end: The number of output tokens after which no token is allowed.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self.num_bytes = 16 * block_size  # of a block; two numbers for each token
        self._cache: dict[tuple[int, int], tuple[int, int]] = {}  # position and token, by slot
        self.gate = threading.Event()
        self.gate.set()
        self.is_waiting = threading.Event()
        self.error: BaseException | None = None
        self.failing_runs: Container[int] = ()
        self.dead_end: int | None = None
        self.num_runs = 0
        self.batches: list[Batch] = []  # the batches of steps that did not fail

    def run(self, batch: Batch) -> list[Computed]:
        if not self.gate.is_set():
            self.is_waiting.set()
            self.gate.wait()
        self.num_runs += 1
        error = self.error
        if self.num_runs in self.failing_runs:
            error = RuntimeError(f"run {self.num_runs} fails")
        for scheduled in batch.scheduled:
            start = scheduled.sequence.num_computed_tokens
            for position, token_id in enumerate(scheduled.token_ids, start):
                slot = self._slot(scheduled.sequence, position)
                self._cache[slot] = (position, token_id) if error is None else _OVERWRITTEN
        if error is not None:
            raise error
        self.batches.append(batch)
        for scheduled in batch.scheduled:
            self._check(scheduled)
        return [self._sample(s) if s.is_sampled else Computed() for s in batch.scheduled]

    def read(self, block_id: int) -> NDArray[np.uint8]:
        """Return a block; see `service.engine.disk_cache.BlockMemory`."""
        slots = ((block_id, offset) for offset in range(self._block_size))
        content = np.array([self._cache[slot] for slot in slots], dtype=np.int64)
        return content.reshape(-1).view(np.uint8)

    def write(self, block_id: int, content: NDArray[np.uint8]) -> None:
        """Replace a block; see `service.engine.disk_cache.BlockMemory`."""
        pairs = content.view(np.int64).reshape(-1, 2).tolist()
        for offset, (position, token_id) in enumerate(pairs):
            self._cache[block_id, offset] = (position, token_id)

    def _sample(self, scheduled: ScheduledSequence) -> Computed:
        draft = scheduled.draft_token_ids
        token_ids = [_sample(scheduled.sequence, draft[:i]) for i in range(len(draft) + 1)]
        end = (
            None if self.dead_end is None else self.dead_end - scheduled.sequence.num_output_tokens
        )
        return Computed(accept(token_ids, draft)[:end])

    def _check(self, scheduled: ScheduledSequence) -> None:
        sequence = scheduled.sequence
        token_ids = sequence.token_ids[: sequence.num_computed_tokens] + scheduled.token_ids
        read = [self._cache.get(self._slot(sequence, i)) for i in range(len(token_ids))]
        if read != list(enumerate(token_ids)):
            raise WrongCacheError(f"{read} is not {token_ids}")

    def _slot(self, sequence: Sequence, position: int) -> tuple[int, int]:
        block, offset = divmod(position, self._block_size)
        return sequence.block_ids[block], offset


def steady_clock() -> Callable[[], float]:
    """Return a clock by which every step takes 1 s, whatever it computes.

    So drafts cost nothing, and the same drafts are computed in each run of a test.
    """
    seconds = itertools.count()
    return lambda: float(next(seconds))


def make_core(
    runner: FakeRunner, scheduler: Scheduler, clock: Callable[[], float] | None = None
) -> EngineCore:
    """Return a core whose sequences may be as long as its cache.

    Args:
        clock: See `EngineCore`. The default is `steady_clock`.
    """
    max_model_len = scheduler.pool.num_tokens
    return EngineCore(scheduler, runner, max_model_len, clock=clock or steady_clock())
