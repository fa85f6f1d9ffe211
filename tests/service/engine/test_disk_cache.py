import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.domain.engine import Caller, Request, TokenOutput
from service.domain.sampling import SamplingParams
from service.engine.block_files import BlockFiles
from service.engine.block_pool import BlockPool
from service.engine.disk_cache import DiskCache
from service.engine.scheduler import Scheduler
from service.errors import ChatrpcError
from tests.fakes.runner import VOCAB_SIZE, FakeRunner, answer, make_core
from tests.fakes.timed_runner import TimedRunner
from tests.fakes.wait import FAILSAFE_S, block_until
from tests.service.engine.requests import make_request

BLOCK_SIZE = 4
MIN_TOKENS = 8
SYSTEM_PROMPT = tuple(i * 7 % VOCAB_SIZE for i in range(42))  # ten full blocks


class GatedFiles(BlockFiles):
    """Files whose reads wait, while `gate` is clear, and whose writes may fail."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        super().__init__(directory, max_bytes)
        self.gate = threading.Event()
        self.gate.set()
        self.num_reads = 0
        self.write_error: OSError | None = None

    def read(self, key: bytes, num_bytes: int, used_ns: int) -> NDArray[np.uint8] | None:
        self.num_reads += 1
        assert self.gate.wait(FAILSAFE_S)
        return super().read(key, num_bytes, used_ns)

    def write(self, key: bytes, content: NDArray[np.uint8], used_ns: int) -> None:
        if self.write_error is not None:
            raise self.write_error
        super().write(key, content, used_ns)


@dataclass
class Clock:
    """A clock that tests set."""

    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


class SlowCopies(TimedRunner):
    """A `TimedRunner` for which a block that is copied into the cache takes a simulated second."""

    def write(self, block_id: int, content: NDArray[np.uint8]) -> None:
        self.now_s += 1.0
        super().write(block_id, content)


class Engine:
    """An engine over a `FakeRunner`, with a prefix cache in a directory."""

    def __init__(
        self,
        directory: Path,
        *,
        num_blocks: int = 60,
        max_num_seqs: int = 4,
        identity: bytes = b"model",
        max_bytes: int = 10**6,
        num_speculative_tokens: int = 0,
        runner: FakeRunner | None = None,
        step_clock: Callable[[], float] | None = None,
    ) -> None:
        self.runner = runner or FakeRunner(BLOCK_SIZE)
        self.pool = BlockPool(num_blocks, BLOCK_SIZE)
        self.files = GatedFiles(directory, max_bytes)
        self.clock = Clock()
        self.cache = DiskCache(
            self.files,
            self.runner,
            self.pool,
            lambda: identity,
            min_tokens=MIN_TOKENS,
            clock=self.clock,
        )
        scheduler = Scheduler(
            self.pool,
            max_num_seqs,
            max_num_seqs + 12,
            num_speculative_tokens,
            disk_cache=self.cache,
        )
        self.core = make_core(self.runner, scheduler, step_clock)
        self.outputs: dict[int, list[TokenOutput]] = {}
        self._ids = count()

    def open(self) -> "Engine":
        block_until(lambda: self.cache.is_open)
        return self

    def add(self, request: Request) -> int:
        request_id = next(self._ids)
        self.outputs[request_id] = []
        self.core.add(request_id, request)
        return request_id

    def step(self) -> None:
        """Step when there is something to do."""
        block_until(lambda: self.core.has_work)
        for output in self.core.step():
            assert not isinstance(output.output, ChatrpcError)
            self.outputs[output.request_id].append(output.output)

    def finish(self) -> None:
        """Step until every request has finished and every block is stored."""
        while self.core.has_unfinished:
            self.step()
        self.settle()

    def settle(self) -> None:
        """Wait until every block is stored. No request is unfinished."""
        while self.core.has_work:
            self.core.step()
        block_until(lambda: not self.cache.is_storing)

    def run(self, request: Request) -> TokenOutput:
        """Run one request. Check its output, and return it."""
        request_id = self.add(request)
        self.finish()
        outputs = self.outputs[request_id]
        for index in range(request.n):
            tokens = [t for o in outputs if o.index == index for t in o.token_ids]
            assert tokens == answer(request, self.pool.num_tokens, index)
        return outputs[-1]

    @property
    def num_computed(self) -> int:
        """Number of tokens that the runner has computed."""
        return sum(batch.num_tokens for batch in self.runner.batches)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    """Start engines that share a directory."""
    engines: list[Engine] = []

    def start(**options: object) -> Engine:
        engines.append(Engine(tmp_path, **options))  # type: ignore[arg-type]
        return engines[-1].open()

    yield start
    for engine in engines:
        engine.core.close()


def prompt(user: int, system: tuple[int, ...] = SYSTEM_PROMPT) -> tuple[int, ...]:
    return (*system, user, user + 1, user + 2)


def stored(engine: Engine, **options: object) -> Engine:
    """Store the system prompt: two requests use it."""
    for user in (1, 2):
        engine.run(make_request(prompt(user), **options))  # type: ignore[arg-type]
    return engine


def test_block_is_stored_when_a_second_request_uses_it(start: Callable[..., Engine]) -> None:
    engine = start()
    engine.run(make_request(prompt(1)))
    assert engine.core.stats.disk_cache.num_bytes == 0
    engine.run(make_request(prompt(2)))
    stats = engine.core.stats.disk_cache
    assert stats.num_written_bytes == 10 * engine.runner.num_bytes
    assert stats.num_bytes > stats.num_written_bytes
    engine.run(make_request(prompt(3)))
    assert engine.core.stats.disk_cache.num_written_bytes == stats.num_written_bytes


def test_prefix_is_loaded_after_a_restart(start: Callable[..., Engine]) -> None:
    stored(start())
    engine = start()
    output = engine.run(make_request(prompt(3), max_tokens=1))
    assert output.num_cached_tokens == 40
    assert engine.num_computed == len(prompt(3)) - 40
    stats = engine.core.stats
    assert (stats.disk_cache.num_queries, stats.disk_cache.num_hits) == (44, 40)
    assert stats.disk_cache.num_read_bytes == 10 * engine.runner.num_bytes
    assert (stats.num_prefix_cache_queries, stats.num_prefix_cache_hits) == (45, 40)
    assert stats.disk_cache.num_errors == 0


def test_duration_of_a_step_does_not_include_copies(start: Callable[..., Engine]) -> None:
    stored(start())
    runner = SlowCopies(BLOCK_SIZE)
    engine = start(runner=runner, step_clock=runner.clock)
    assert engine.run(make_request(prompt(3))).num_cached_tokens == 40
    assert runner.now_s >= 10
    assert engine.core.stats.step_s == pytest.approx(sum(step_s for step_s, _ in runner.steps))


def test_loaded_prefix_is_found_in_memory_later(start: Callable[..., Engine]) -> None:
    stored(start())
    engine = start()
    for user in (3, 4):
        assert engine.run(make_request(prompt(user))).num_cached_tokens == 40
    assert engine.core.stats.disk_cache.num_read_bytes == 10 * engine.runner.num_bytes


def test_prefix_is_loaded_after_its_eviction_from_memory(start: Callable[..., Engine]) -> None:
    engine = stored(start(num_blocks=20))
    engine.run(make_request([5, 3] * 30, max_tokens=2))
    assert engine.run(make_request(prompt(3))).num_cached_tokens == 40
    assert engine.core.stats.disk_cache.num_hits > 0


def test_blocks_after_those_in_memory_are_loaded(start: Callable[..., Engine]) -> None:
    stored(start())
    engine = start()
    engine.run(make_request((*SYSTEM_PROMPT[:6], 1, 1)))  # has the first block
    output = engine.run(make_request(prompt(3)))
    assert output.num_cached_tokens == 40
    assert engine.core.stats.disk_cache.num_hits == 36


@pytest.mark.parametrize(
    ("options", "request_options"),
    [
        ({"identity": b"another model"}, {}),
        ({}, {"cache_salt": "other"}),
        ({}, {"caller": Caller("b", cache_namespace="b")}),
    ],
)
def test_blocks_of_others_are_not_loaded(
    start: Callable[..., Engine], options: dict[str, object], request_options: dict[str, Caller]
) -> None:
    stored(start(), cache_salt="mine")
    engine = start(**options)
    assert engine.files.num_bytes > 0
    output = engine.run(make_request(prompt(3), **request_options))  # type: ignore[arg-type]
    assert output.num_cached_tokens == 0
    assert engine.core.stats.disk_cache.num_hits == 0


def test_files_have_neither_salt_nor_tokens_in_their_names(
    start: Callable[..., Engine], tmp_path: Path
) -> None:
    stored(start(), cache_salt="secret-salt")
    for file in (tmp_path / "blocks").iterdir():
        assert b"secret-salt" not in file.name.encode() + file.read_bytes()


def test_short_prefix_is_neither_stored_nor_loaded(start: Callable[..., Engine]) -> None:
    engine = start()
    for user in (1, 2):
        engine.run(make_request((1, 2, 3, 4, user, user)))
    assert engine.core.stats.disk_cache.num_bytes == 0


def test_prompt_with_log_probabilities_is_not_loaded(start: Callable[..., Engine]) -> None:
    stored(start())
    engine = start()
    engine.add(replace(make_request(prompt(3)), num_prompt_logprobs=0))
    engine.step()
    assert engine.num_computed > 0
    assert engine.core.stats.disk_cache.num_queries == 0


def test_sequences_of_a_request_use_the_loaded_prefix(start: Callable[..., Engine]) -> None:
    stored(start())
    engine = start()
    request = replace(
        make_request(prompt(3), n=3), sampling=SamplingParams(temperature=1.0, seed=4, max_tokens=5)
    )
    assert engine.run(request).num_cached_tokens == 40


def test_sequences_of_one_request_are_not_a_second_use(start: Callable[..., Engine]) -> None:
    engine = start()
    engine.run(make_request(prompt(1), n=3))
    assert engine.core.stats.disk_cache.num_bytes == 0


def test_other_sequences_run_while_a_prefix_is_loaded(start: Callable[..., Engine]) -> None:
    stored(start())
    engine = start()
    engine.files.gate.clear()
    loading = engine.add(make_request(prompt(3)))
    running = engine.add(make_request((9, 8, 7), max_tokens=20))
    while len(engine.outputs[running]) < 20:
        engine.step()
    assert engine.outputs[loading] == []
    engine.step()
    assert not engine.core.has_work
    engine.files.gate.set()
    engine.finish()
    assert engine.outputs[loading][-1].num_cached_tokens == 40


def test_request_can_be_aborted_while_its_prefix_is_loaded(start: Callable[..., Engine]) -> None:
    stored(start())
    engine = start()
    engine.files.gate.clear()
    aborted = engine.add(make_request(prompt(3)))
    engine.step()
    assert engine.core.is_loading
    engine.core.abort(aborted)
    engine.step()
    assert not engine.cache.is_loading
    assert engine.pool.num_free == engine.pool.num_blocks
    engine.files.gate.set()
    assert engine.run(make_request(prompt(4))).num_cached_tokens == 40


def test_sequences_with_one_prefix_load_it_once(start: Callable[..., Engine]) -> None:
    stored(start())
    engine = start()
    ids = [engine.add(make_request(prompt(user))) for user in (3, 4, 5)]
    engine.finish()
    assert [engine.outputs[i][-1].num_cached_tokens for i in ids] == [40] * 3
    assert engine.core.stats.disk_cache.num_read_bytes == 10 * engine.runner.num_bytes


def test_rest_of_a_prefix_is_computed_after_a_damaged_block(
    start: Callable[..., Engine], tmp_path: Path
) -> None:
    stored(start())
    files = list((tmp_path / "blocks").iterdir())
    fourth = sorted(files, key=lambda file: -file.stat().st_mtime_ns)[3]
    fourth.write_bytes(fourth.read_bytes()[:-1])
    engine = start()
    with structlog.testing.capture_logs() as logs:
        output = engine.run(make_request(prompt(3)))
    assert output.num_cached_tokens == 12
    assert engine.core.stats.disk_cache.num_errors == 1
    assert [entry["event"] for entry in logs] == ["prefix_cache_disk_failed"]


def test_blocks_that_another_process_removes_are_computed(
    start: Callable[..., Engine], tmp_path: Path
) -> None:
    stored(start())
    engine = start()
    for file in (tmp_path / "blocks").iterdir():
        file.unlink()
    assert engine.run(make_request(prompt(3))).num_cached_tokens == 0
    assert engine.core.stats.disk_cache.num_errors == 0


def test_prompts_are_computed_when_the_disk_does_not_answer(start: Callable[..., Engine]) -> None:
    stored(start())
    engine = start()
    engine.files.gate.clear()
    ids = [engine.add(make_request(prompt(user))) for user in (3, 4)]
    for _ in range(2):
        engine.step()
    engine.clock.now_s += 3
    engine.core.step()  # as the engine's thread does in intervals
    engine.finish()
    assert [engine.outputs[i][-1].num_cached_tokens for i in ids] == [0, 0]
    assert engine.core.stats.disk_cache.num_errors == 1
    engine.files.gate.set()
    num_reads = engine.files.num_reads
    engine.run(make_request((7, 7, *prompt(5))))
    assert engine.files.num_reads <= num_reads + 10, "nothing but the reads of before"


def test_service_continues_when_the_disk_is_full(start: Callable[..., Engine]) -> None:
    engine = start()
    engine.files.write_error = OSError(28, "No space left on device")
    with structlog.testing.capture_logs() as logs:
        stored(engine)
        engine.run(make_request(prompt(3)))
    assert engine.core.stats.disk_cache.num_errors == 1, "no second try at once"
    assert [entry["reason"] for entry in logs] == ["[Errno 28] No space left on device"]
    engine.files.write_error = None
    engine.clock.now_s += 60
    engine.run(make_request(prompt(4)))
    assert engine.core.stats.disk_cache.num_written_bytes == 10 * engine.runner.num_bytes


def test_service_continues_when_the_directory_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    engine = Engine(tmp_path / "file")
    block_until(lambda: engine.core.stats.disk_cache.num_errors == 1)
    stored(engine)
    assert not engine.cache.is_open
    engine.core.close()


def test_size_of_the_files_is_bounded(start: Callable[..., Engine], tmp_path: Path) -> None:
    max_bytes = 25 * 150
    engine = start(max_bytes=max_bytes)
    for first in range(6):
        stored(engine, cache_salt=str(first))
    assert sum(file.stat().st_size for file in (tmp_path / "blocks").iterdir()) <= max_bytes
    assert engine.core.stats.disk_cache.num_evictions > 0
    assert engine.run(make_request(prompt(3), cache_salt="5")).num_cached_tokens == 40


def test_preempted_sequence_loads_its_prefix_again(start: Callable[..., Engine]) -> None:
    stored(start())
    engine = start(num_blocks=26, max_num_seqs=2)
    requests = [make_request(prompt(user), max_tokens=30) for user in (3, 4)]
    requests[1] = replace(requests[1], prompt_token_ids=(8, *requests[1].prompt_token_ids))
    ids = [engine.add(request) for request in requests]
    engine.finish()
    for request_id, request in zip(ids, requests, strict=True):
        tokens = [t for output in engine.outputs[request_id] for t in output.token_ids]
        assert tokens == answer(request, engine.pool.num_tokens)
    assert engine.core.stats.num_preemptions > 0


@dataclass
class Life:
    """The requests between two starts of an engine; those in `aborted` are aborted."""

    prompts: list[tuple[int, int, str]]
    num_steps: list[int]
    aborted: set[int] = field(default_factory=set)


_LIVES = st.lists(
    st.builds(
        Life,
        st.lists(
            st.tuples(st.integers(1, 42), st.integers(0, 3), st.sampled_from(["", "salt"])),
            min_size=1,
            max_size=8,
        ),
        st.lists(st.integers(0, 4), min_size=8, max_size=8),
        st.sets(st.integers(0, 7), max_size=3),
    ),
    min_size=2,
    max_size=4,
)


@settings(max_examples=30)
@given(lives=_LIVES, num_blocks=st.integers(16, 40), max_blocks=st.integers(8, 40))
def test_outputs_are_right_whatever_is_stored_loaded_and_evicted(
    lives: list[Life], num_blocks: int, max_blocks: int
) -> None:
    with TemporaryDirectory() as directory:
        for life in lives:
            with _living(Path(directory), num_blocks, max_blocks * 150) as engine:
                _live(engine, life)


@contextmanager
def _living(directory: Path, num_blocks: int, max_bytes: int) -> Iterator[Engine]:
    engine = Engine(
        directory, num_blocks=num_blocks, max_bytes=max_bytes, num_speculative_tokens=2
    ).open()
    yield engine
    engine.core.close()


def _live(engine: Engine, life: Life) -> None:
    requests: dict[int, Request] = {}
    for (length, user, salt), num_steps in zip(life.prompts, life.num_steps, strict=False):
        request = make_request(
            prompt(user, SYSTEM_PROMPT[:length]), max_tokens=1 + length % 5, cache_salt=salt
        )
        requests[engine.add(request)] = request
        for _ in range(num_steps):
            if engine.core.has_work:
                engine.step()
    for request_id in life.aborted & requests.keys():
        engine.core.abort(request_id)
        del requests[request_id]
    engine.finish()
    assert engine.pool.num_free == engine.pool.num_blocks
    for request_id, request in requests.items():
        tokens = [t for output in engine.outputs[request_id] for t in output.token_ids]
        assert tokens == answer(request, engine.pool.num_tokens)
