"""Random requests with all options, run together in a small cache.

Each must get the output that the definitions give for this request without the others.
"""

import math
from dataclasses import dataclass
from itertools import accumulate, cycle

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.domain.engine import Caller, FinishReason, Request, TokenLogprobs, TokenOutput
from service.domain.sampling import SamplingParams
from service.engine.block_pool import BlockPool
from service.engine.core import EngineCore
from service.engine.model_runner import ModelRunner
from service.engine.scheduler import Scheduler
from service.errors import ChatrpcError, ConstraintFailed, StepFailed
from tests.fakes.constraint import FakeConstraint
from tests.fakes.model import VOCAB_SIZE, FakeModel
from tests.fakes.written_out import write_out, write_out_prompt

BLOCK_SIZE = 4
END = 0

tokens = st.integers(0, VOCAB_SIZE - 1)
halves = st.integers(-4, 4).map(lambda n: n / 2)

sampling_params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.0, 0.5, 1.0]),
    top_p=st.sampled_from([1.0, 0.9]),
    top_k=st.sampled_from([0, 0, 5]),
    min_p=st.sampled_from([0.0, 0.1]),
    seed=st.integers(0, 5),
    max_tokens=st.integers(1, 24) | st.none(),
    presence_penalty=st.just(0.0) | halves,
    frequency_penalty=st.just(0.0) | halves,
    repetition_penalty=st.sampled_from([1.0, 1.0, 2.0, 0.5]),
    logit_bias=st.just({}) | st.dictionaries(tokens, halves, max_size=4),
    min_tokens=st.sampled_from([0, 0, 3, 12]),
    allowed_token_ids=st.none() | st.frozensets(tokens, max_size=8),
)

constraints = st.builds(
    FakeConstraint,
    st.lists(st.lists(tokens.filter(lambda t: t != END), max_size=12).map(tuple), max_size=4).map(
        tuple
    ),
    end=st.just(END),
    fails_at=st.none() | st.none() | st.integers(1, 6),
)

requests = st.builds(
    Request,
    prompt_token_ids=st.builds(
        lambda text, length: tuple((text + i * i % 5) % VOCAB_SIZE for i in range(length)),
        st.integers(0, 2),  # prompts with the same text share their beginning
        st.integers(1, 15),
    ),
    sampling=sampling_params,
    stop_token_ids=st.sampled_from([frozenset(), frozenset({END}), frozenset({END, 3})]),
    cache_salt=st.sampled_from(["", "", "salt"]),
    n=st.sampled_from([1, 1, 1, 2, 3, 7]),
    priority=st.sampled_from([0, 0, 0, -1, 5]),
    num_logprobs=st.none() | st.sampled_from([0, 1, 5, 99]),
    num_prompt_logprobs=st.none() | st.sampled_from([0, 3]),
    bad_token_sequences=st.just(())
    | st.lists(st.lists(tokens, min_size=1, max_size=3).map(tuple), max_size=4).map(tuple),
    constraint=st.none() | constraints,
    caller=st.sampled_from([Caller(), Caller(), Caller("a"), Caller("b", weight=2)]),
)


@dataclass(frozen=True)
class Arrival:
    """A request, and the events before the next one."""

    request: Request
    num_steps: int
    aborts: int | None  # the number of a request to abort, if it has arrived


arrivals = st.builds(Arrival, requests, st.integers(0, 4), st.none() | st.integers(0, 9))


@dataclass(frozen=True)
class Engine:
    """The parameters of an engine."""

    num_blocks: int
    max_num_seqs: int
    spare_tokens: int
    has_prefix_caching: bool
    num_speculative_tokens: int
    max_step_s: float
    durations: tuple[float, ...]

    def core(self, model: FakeModel) -> EngineCore:
        pool = BlockPool(self.num_blocks, BLOCK_SIZE, has_prefix_caching=self.has_prefix_caching)
        budget = self.max_num_seqs + self.spare_tokens
        scheduler = Scheduler(
            pool, self.max_num_seqs, budget, self.num_speculative_tokens, self.max_step_s
        )
        clock = accumulate(cycle(self.durations))
        return EngineCore(
            scheduler, ModelRunner(model), self.max_model_len, clock=lambda: next(clock)
        )

    @property
    def max_model_len(self) -> int:
        return self.num_blocks * BLOCK_SIZE


engines = st.builds(
    Engine,
    num_blocks=st.integers(4, 14),
    max_num_seqs=st.integers(1, 6),
    spare_tokens=st.integers(0, 12),
    has_prefix_caching=st.booleans(),
    num_speculative_tokens=st.sampled_from([0, 1, 8]),
    max_step_s=st.sampled_from([math.inf, 1.0, 0.01]),
    durations=st.lists(st.floats(1e-3, 10.0), min_size=1, max_size=5).map(tuple),
)


class Got:
    """The outputs of one request."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.outputs: dict[int, list[TokenOutput]] = {i: [] for i in range(request.n)}
        self.error: ChatrpcError | None = None

    def put(self, output: TokenOutput | ChatrpcError) -> None:
        assert self.error is None, "an output behind the end"
        if isinstance(output, ChatrpcError):
            self.error = output
            return
        before = self.outputs[output.index]
        assert not before or before[-1].finish_reason is None, "an output behind the end"
        assert output.token_ids or output.finish_reason is FinishReason.STOP
        before.append(output)

    def check(self, max_model_len: int, *, is_whole: bool) -> None:
        for index, outputs in self.outputs.items():
            expected = write_out(self.request, index, max_model_len)
            said = tuple(t for o in outputs for t in o.token_ids)
            logprobs = tuple(entry for o in outputs for entry in o.logprobs)
            assert said == expected.token_ids[: len(said)]
            is_close(logprobs, expected.logprobs[: len(said)])
            if is_whole:
                assert said == expected.token_ids
                assert outputs[-1].finish_reason is expected.finish_reason
            told = tuple(entry for o in outputs for entry in o.prompt_logprobs)
            is_close(told, write_out_prompt(self.request) if outputs and index == 0 else ())
            assert all(not o.prompt_logprobs for o in outputs[1:])
        assert len({o.num_cached_tokens for os in self.outputs.values() for o in os}) <= 1


def is_close(got: tuple[TokenLogprobs, ...], expected: tuple[TokenLogprobs, ...]) -> None:
    assert len(got) == len(expected)
    for g, e in zip(got, expected, strict=True):
        assert g.token_id == e.token_id
        assert g.logprob == pytest.approx(e.logprob, abs=1e-5)
        assert [t for t, _ in g.top] == [t for t, _ in e.top]
        assert [p for _, p in g.top] == pytest.approx([p for _, p in e.top], abs=1e-5)


def fails(request: Request, max_model_len: int) -> bool:
    """Return True if the request's grammar fails in any of its sequences."""
    try:
        for index in range(request.n):
            write_out(request, index, max_model_len)
    except ValueError:
        return True
    return False


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    engine=engines,
    program=st.lists(arrivals, min_size=1, max_size=10),
    failing_steps=st.sets(st.integers(1, 60), max_size=4),
)
def test_each_request_gets_the_output_of_the_definitions(
    engine: Engine, program: list[Arrival], failing_steps: set[int]
) -> None:
    model = FakeModel(BLOCK_SIZE)
    model.failing_steps = {n for n in failing_steps if not {n - 1, n - 2} <= failing_steps}
    core = engine.core(model)
    got: list[Got] = []
    aborted: set[int] = set()

    def step() -> None:
        for output in core.step():
            assert output.request_id not in aborted
            got[output.request_id].put(output.output)

    for i, arrival in enumerate(program):
        core.add(i, arrival.request)
        got.append(Got(arrival.request))
        for _ in range(arrival.num_steps):
            step()
        if arrival.aborts is not None and arrival.aborts <= i:
            core.abort(arrival.aborts)
            aborted.add(arrival.aborts)
    while core.has_unfinished:
        step()
    for i, request_got in enumerate(got):
        if fails(request_got.request, engine.max_model_len):
            assert i in aborted or isinstance(request_got.error, StepFailed)
            continue
        assert not isinstance(request_got.error, ConstraintFailed)
        is_whole = i not in aborted and request_got.error is None
        request_got.check(engine.max_model_len, is_whole=is_whole)
    stats = core.stats
    assert (stats.num_running, stats.num_waiting) == (0, 0)
    assert stats.num_free_kv_blocks == stats.num_kv_blocks
