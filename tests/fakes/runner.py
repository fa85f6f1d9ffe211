"""A model that is a hash, and quotes: it reads its context back from a cache, as attention does."""

import threading
import zlib
from collections.abc import Container

from service.domain.engine import Request
from service.engine.core import Computed, EngineCore
from service.engine.scheduler import Batch, ScheduledSequence, Scheduler
from service.engine.sequence import Sequence
from service.engine.speculation import accept

VOCAB_SIZE = 30
RUBBISH = (-1, -1)


class WrongCacheError(BaseException):
    """A sequence reads what is not its own. No Exception: nothing may take it for a failed step."""


def next_token(token_ids: list[int], draw: float = 0.0) -> int:
    """The token that the fake model says after `token_ids`.

    Seven times out of eight it is what followed the last token before, if there was one.
    """
    choice = zlib.crc32(repr((token_ids, draw)).encode())
    if choice % 8:
        for i in range(len(token_ids) - 1, 0, -1):
            if token_ids[i - 1] == token_ids[-1]:
                return token_ids[i]
    return choice % VOCAB_SIZE


def answer(request: Request, max_model_len: int, index: int = 0) -> list[int]:
    """What an engine over a `FakeRunner` must answer, computed by itself: one token at a time."""
    sequence = Sequence(0, request, max_model_len, index)
    while sequence.finish_reason is None:
        sequence.append(_sample(sequence, ()))
    return sequence.token_ids[sequence.num_prompt_tokens :]


def _sample(sequence: Sequence, draft: tuple[int, ...]) -> int:
    """The token behind a sequence and a part of its draft, with the draw of its own position."""
    position = sequence.num_output_tokens + len(draft)
    draw = 0.0 if sequence.request.sampling.is_greedy else sequence.draw(position)
    return next_token([*sequence.token_ids, *draft], draw)


class FakeRunner:
    """`service.engine.core.Runner` with a cache of tokens in the place of keys and values.

    Whatever is computed reads its whole context back through the block table, and each place must
    hold the right token at the right position: a block that another sequence wrote to, a wrong
    prefix, or one that was not computed anew is found at once. While `gate` is clear a step waits
    for it, having set `is_waiting`. While `error` is set, and in the runs whose numbers are in
    `failing_runs`, a step fails in the middle of its work. Behind `dead_end` tokens of an answer
    there is nothing left to say.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._cache: dict[tuple[int, int], tuple[int, int]] = {}  # position and token, by place
        self.gate = threading.Event()
        self.gate.set()
        self.is_waiting = threading.Event()
        self.error: BaseException | None = None
        self.failing_runs: Container[int] = ()
        self.dead_end: int | None = None
        self.num_runs = 0
        self.batches: list[Batch] = []  # those that did not fail

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
                place = self._place(scheduled.sequence, position)
                self._cache[place] = (position, token_id) if error is None else RUBBISH
        if error is not None:
            raise error
        self.batches.append(batch)
        for scheduled in batch.scheduled:
            self._check(scheduled)
        return [self._sample(s) if s.is_sampled else Computed() for s in batch.scheduled]

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
        read = [self._cache.get(self._place(sequence, i)) for i in range(len(token_ids))]
        if read != list(enumerate(token_ids)):
            raise WrongCacheError(f"{read} is not {token_ids}")

    def _place(self, sequence: Sequence, position: int) -> tuple[int, int]:
        block, offset = divmod(position, self._block_size)
        return sequence.block_ids[block], offset


def make_core(runner: FakeRunner, scheduler: Scheduler) -> EngineCore:
    """A core whose sequences may be as long as its whole cache."""
    return EngineCore(scheduler, runner, scheduler.pool.num_tokens)
