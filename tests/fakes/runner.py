"""A model that is a hash: it reads its context back from a cache, as attention does."""

import threading
import zlib

from service.engine.core import EngineCore
from service.engine.scheduler import Batch, Scheduler
from service.engine.sequence import Sequence
from service.types import Request

VOCAB_SIZE = 1000


class WrongCacheError(BaseException):
    """A sequence reads what is not its own. No Exception: nothing may take it for a failed step."""


def next_token(token_ids: list[int]) -> int:
    """The token that the fake model says after `token_ids`."""
    return zlib.crc32(repr(token_ids).encode()) % VOCAB_SIZE


def answer(request: Request, max_model_len: int) -> list[int]:
    """What an engine over a `FakeRunner` must answer, computed by itself."""
    sequence = Sequence(0, request, max_model_len)
    while sequence.finish_reason is None:
        sequence.append(next_token(sequence.token_ids))
    return sequence.token_ids[sequence.num_prompt_tokens :]


class FakeRunner:
    """`service.engine.core.Runner` with a cache of tokens in the place of keys and values.

    Whatever is computed reads its whole context back through the block table, and each place must
    hold the right token at the right position: a block that another sequence wrote to, a wrong
    prefix, or one that was not computed anew is found at once. While `gate` is clear a step waits
    for it, having set `is_waiting`; `error` is raised instead.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._cache: dict[tuple[int, int], tuple[int, int]] = {}  # position and token, by place
        self.gate = threading.Event()
        self.gate.set()
        self.is_waiting = threading.Event()
        self.error: BaseException | None = None
        self.batches: list[Batch] = []

    def run(self, batch: Batch) -> list[int]:
        if not self.gate.is_set():
            self.is_waiting.set()
            self.gate.wait()
        if self.error is not None:
            raise self.error
        self.batches.append(batch)
        for scheduled in batch.scheduled:
            start = scheduled.sequence.num_computed_tokens
            for position in range(start, start + scheduled.num_new_tokens):
                token_id = scheduled.sequence.token_ids[position]
                self._cache[self._place(scheduled.sequence, position)] = position, token_id
        for scheduled in batch.scheduled:
            end = scheduled.sequence.num_computed_tokens + scheduled.num_new_tokens
            self._check(scheduled.sequence, end)
        return [next_token(sequence.token_ids) for sequence in batch.sampled]

    def _check(self, sequence: Sequence, num_tokens: int) -> None:
        read = [self._cache.get(self._place(sequence, i)) for i in range(num_tokens)]
        if read != list(enumerate(sequence.token_ids[:num_tokens])):
            raise WrongCacheError(f"{read} is not {sequence.token_ids[:num_tokens]}")

    def _place(self, sequence: Sequence, position: int) -> tuple[int, int]:
        block, offset = divmod(position, self._block_size)
        return sequence.block_ids[block], offset


def make_core(runner: FakeRunner, scheduler: Scheduler) -> EngineCore:
    """A core whose sequences may be as long as its whole cache."""
    return EngineCore(scheduler, runner, scheduler.pool.num_tokens)
