"""With the native kernels, the output of a request does not depend on how it was computed.

Other requests in the batch, the chunks of the prefill, preemption and the choice of blocks change
no bit. Tests of logits compare the results of `Model.forward` with `torch.equal`. The other tests
compare tokens that `EngineCore` samples.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from service.domain.engine import Caller, Request, TokenLogprobs, TokenOutput
from service.domain.engine_settings import Quantization
from service.domain.sampling import SamplingParams
from service.engine.batch import Batch, ScheduledSequence
from service.engine.core import EngineCore
from service.engine.layout import Layout
from service.engine.load import EngineOptions, load_engine, load_model
from service.engine.model_runner import Model
from service.engine.sequence import Sequence
from tests.fakes.constraint import FakeConstraint
from tests.fakes.runner import steady_clock
from tests.service.engine.models import VOCAB_SIZE, make_config, save_model
from tests.service.engine.perplexity import embedded_model, read_text
from tests.support.native_kernels import CPU_LEVELS, HAS_COMPILER, NEEDS_KERNELS

pytestmark = pytest.mark.skipif(
    not (CPU_LEVELS and HAS_COMPILER), reason="holds with the native kernels"
)

BLOCK_SIZE = 16


_TINY: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": None,
}
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "heads of 16": ("llama", _TINY | {"head_dim": 16}),
    "heads of 64": ("llama", _TINY | {"head_dim": 64}),
    "a window": ("mistral", _TINY | {"head_dim": 16, "sliding_window": 24}),
    "norms of queries and keys": ("qwen3", _TINY | {"head_dim": 64}),
}


# ------------------------------------------------------------------------------------ logits


@dataclass(frozen=True)
class Part:
    """A sequence's part of one step: its next `num_tokens` tokens, the last `num_accepted` of them
    as accepted drafts, and further drafts that are rejected."""

    num_tokens: int
    num_accepted: int = 0
    refused: tuple[int, ...] = ()


@dataclass(frozen=True)
class Run:
    """A sequence, the steps that compute it and those that pass before it arrives."""

    token_ids: list[int]
    parts: list[Part]
    delay: int = 0

    @classmethod
    def of(cls, token_ids: list[int], chunks: list[int], delay: int = 0) -> "Run":
        assert sum(chunks) == len(token_ids)
        return cls(token_ids, [Part(n) for n in chunks], delay)


@torch.inference_mode()
def compute(
    model: Model, runs: list[Run], block_ids: list[int], *, is_last_only: bool = False
) -> list[dict[int, Tensor]]:
    """Return the logits of each run by position. All runs are computed together, in any blocks.

    Logits are computed for every row or, as in the engine, only for the last row and the drafts of
    each step.
    """
    free = iter(block_ids)
    sequences = []
    for i, run in enumerate(runs):
        sequence = Sequence(i, Request(tuple(run.token_ids), SamplingParams()), 100_000)
        longest = len(run.token_ids) + max(len(part.refused) for part in run.parts)
        sequence.block_ids = [next(free) for _ in range(0, longest, BLOCK_SIZE)]
        sequences.append(sequence)
    logits: list[dict[int, Tensor]] = [{} for _ in runs]
    for step in range(max(run.delay + len(run.parts) for run in runs)):
        parts = {
            i: run.parts[step - run.delay]
            for i, run in enumerate(runs)
            if run.delay <= step < run.delay + len(run.parts)
        }
        if not parts:
            continue
        layout = Layout.of(Batch(tuple(_scheduled(sequences[i], p) for i, p in parts.items())))
        asked: list[tuple[int, int, int]] = []  # index of the run, position, row
        for s in layout.sequences:
            sequence = s.scheduled.sequence
            part, start = parts[sequence.request_id], sequence.num_computed_tokens
            first = part.num_tokens - part.num_accepted - 1 if is_last_only else 0
            asked += [
                (sequence.request_id, start + n, s.start + n) for n in range(first, part.num_tokens)
            ]
        rows = model.logits(model.forward(layout, [row for *_, row in asked]))
        for (i, position, _), row in zip(asked, rows, strict=True):
            logits[i][position] = row
        for i, part in parts.items():
            sequences[i].num_computed_tokens += part.num_tokens
    return logits


def _scheduled(sequence: Sequence, part: Part) -> ScheduledSequence:
    start = sequence.num_computed_tokens
    num_new_tokens = part.num_tokens - part.num_accepted
    accepted = sequence.token_ids[start + num_new_tokens : start + part.num_tokens]
    return ScheduledSequence(sequence, num_new_tokens, True, (*accepted, *part.refused))


def reference(model: Model, token_ids: list[int]) -> dict[int, Tensor]:
    """Return the logits of a sequence that is computed in one step, without other sequences."""
    [logits] = compute(model, [Run.of(token_ids, [len(token_ids)])], list(range(len(token_ids))))
    return logits


def differing(got: dict[int, Tensor], expected: dict[int, Tensor]) -> list[int]:
    """Return the positions whose logits differ in any bit."""
    assert got
    return [n for n, row in got.items() if not torch.equal(row, expected[n])]


NUM_BLOCKS = 48
MAX_LEN = 100

_tokens = st.integers(0, VOCAB_SIZE - 1)


@st.composite
def parts(draw: st.DrawFn, length: int) -> list[Part]:
    every = set(range(1, length))
    cuts = draw(st.one_of(st.just(every), st.sets(st.sampled_from(sorted(every or {length})))))
    made = []
    for start, end in pairwise(sorted({0, length} | cuts)):
        num_accepted = draw(st.integers(0, min(3, end - start - 1)))
        refused = draw(st.one_of(st.just(()), st.tuples(_tokens), st.tuples(_tokens, _tokens)))
        made.append(Part(end - start, num_accepted, refused))
    return made


@st.composite
def runs(draw: st.DrawFn) -> Run:
    # Tokens are drawn by a seed: their values do not matter, and hypothesis draws short lists.
    length, seed = draw(st.integers(1, MAX_LEN)), draw(st.integers(0, 2**16))
    token_ids = random.Random(seed).choices(range(VOCAB_SIZE), k=length)
    return Run(token_ids, draw(parts(length)), draw(st.integers(0, 3)))


@pytest.fixture(scope="module", params=TINY)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model_type, fields = TINY[request.param]
    return save_model(tmp_path_factory.mktemp("tiny"), make_config(model_type, **fields))


@pytest.fixture(scope="module")
def tiny_model(tiny: Path) -> Model:
    return load_model(EngineOptions(tiny, device="cpu")).finish(NUM_BLOCKS, BLOCK_SIZE, 512)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(runs(), min_size=1, max_size=6), st.permutations(range(NUM_BLOCKS)), st.booleans())
def test_neither_neighbours_nor_chunks_nor_drafts_change_logits(
    tiny_model: Model, together: list[Run], block_ids: list[int], is_last_only: bool
) -> None:
    got = compute(tiny_model, together, block_ids, is_last_only=is_last_only)
    for run, logits in zip(together, got, strict=True):
        assert differing(logits, reference(tiny_model, run.token_ids)) == []


@pytest.fixture(scope="module")
def int4_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    model_type, fields = TINY["heads of 64"]
    path = save_model(tmp_path_factory.mktemp("int4"), make_config(model_type, **fields))
    options = EngineOptions(path, device="cpu", quantization="int4")
    return load_model(options).finish(NUM_BLOCKS, BLOCK_SIZE, 512)


@NEEDS_KERNELS
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(runs(), min_size=1, max_size=6))
def test_neighbours_and_chunks_change_no_logits_in_int4(
    int4_model: Model, together: list[Run]
) -> None:
    got = compute(int4_model, together, list(range(NUM_BLOCKS)))
    for run, logits in zip(together, got, strict=True):
        assert differing(logits, reference(int4_model, run.token_ids)) == []


@pytest.fixture(scope="module")
def model_with_int8_cache(tmp_path_factory: pytest.TempPathFactory) -> Model:
    model_type, fields = TINY["a window"]
    path = save_model(tmp_path_factory.mktemp("tiny"), make_config(model_type, **fields))
    options = EngineOptions(path, device="cpu", kv_cache_dtype="int8")
    return load_model(options).finish(NUM_BLOCKS, BLOCK_SIZE, 512)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(runs(), min_size=1, max_size=6), st.permutations(range(NUM_BLOCKS)))
def test_int8_cache_does_not_make_logits_depend_on_the_batch(
    model_with_int8_cache: Model, together: list[Run], block_ids: list[int]
) -> None:
    got = compute(model_with_int8_cache, together, block_ids)
    for run, logits in zip(together, got, strict=True):
        assert differing(logits, reference(model_with_int8_cache, run.token_ids)) == []


LONG = 300


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param([1] * LONG, id="single tokens"),
        pytest.param([2] * (LONG // 2), id="pairs"),
        pytest.param([299, 1], id="one left over"),
        pytest.param([1, 299], id="one first"),
        pytest.param([32] * 9 + [12], id="of 32"),
        pytest.param([77] * 3 + [69], id="of 77"),
        pytest.param([256, 44], id="of 256"),
    ],
)
def test_chunks_of_a_long_prompt_do_not_change_logits(tiny_model: Model, chunks: list[int]) -> None:
    token_ids = random.Random(0).choices(range(VOCAB_SIZE), k=LONG)
    [got] = compute(tiny_model, [Run.of(token_ids, chunks)], list(reversed(range(NUM_BLOCKS))))
    [whole] = compute(tiny_model, [Run.of(token_ids, [LONG])], list(range(NUM_BLOCKS)))
    assert differing(got, whole) == []


def test_blocks_do_not_change_logits(tiny_model: Model) -> None:
    token_ids = random.Random(0).choices(range(VOCAB_SIZE), k=LONG)
    expected = reference(tiny_model, token_ids[:MAX_LEN])
    for seed in range(5):
        block_ids = random.Random(seed).sample(range(NUM_BLOCKS), k=NUM_BLOCKS)
        [got] = compute(tiny_model, [Run.of(token_ids[:MAX_LEN], [MAX_LEN])], block_ids)
        assert differing(got, expected) == []


@pytest.fixture(scope="module")
def embedded() -> Path:
    return embedded_model()


@pytest.fixture(scope="module")
def text(embedded: Path) -> list[int]:
    return read_text(embedded)


@pytest.fixture
def set_num_threads() -> Iterator[Callable[[int], None]]:
    num_threads = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(num_threads)


@pytest.mark.parametrize("quantization", ["auto", "int8"])  # auto keeps the file's 4 bits
def test_logits_of_the_embedded_model_do_not_depend_on_the_batch(
    embedded: Path,
    text: list[int],
    quantization: Quantization,
    set_num_threads: Callable[[int], None],
) -> None:
    """The prefill has chunks of 77 or single tokens, other prompts arrive and end, and the number
    of threads varies."""
    options = EngineOptions(embedded, device="cpu", quantization=quantization)
    model = load_model(options).finish(200, BLOCK_SIZE, 512)
    mine = text[1000:1170]
    neighbours = [
        Run.of(text[start : start + length], [length - 6, *[1] * 6], delay)
        for start, length, delay in [(0, 7, 0), (100, 33, 1), (200, 150, 2), (400, 256, 3)]
    ]
    expected = reference(model, mine)
    for num_threads, crowd in ((1, []), (1, neighbours), (2, neighbours)):
        set_num_threads(num_threads)
        block_ids = random.Random(1).sample(range(200), k=200)
        run = Run.of(mine, [77, 77, *[1] * 16])
        got, *_ = compute(model, [run, *crowd], block_ids)
        assert differing(got, expected) == []


# ------------------------------------------------------------------------------------ tokens


Outputs = list[list[int]]


def answers(core: EngineCore, requests: list[Request], *, steps_between: int = 0) -> Outputs:
    """Return the outputs of requests that arrive together, or one after the other."""
    answers: Outputs = [[] for _ in requests]

    def step() -> None:
        for output in core.step():
            assert isinstance(output.output, TokenOutput)
            answers[output.request_id] += output.output.token_ids

    for i, request in enumerate(requests):
        core.add(i, request)
        for _ in range(steps_between):
            step()
    while core.has_unfinished:
        step()
    return answers


def one_by_one(core: EngineCore, requests: list[Request]) -> Outputs:
    return [answers(core, [request])[0] for request in requests]


def make_requests(prompts: list[list[int]], max_tokens: int) -> list[Request]:
    """Return requests, half of them greedy. Sampled tokens show a small difference sooner: a draw
    may fall to the other side of a bound."""
    greedy = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    sampled = SamplingParams(temperature=1.0, top_p=0.9, max_tokens=max_tokens)
    return [
        Request(tuple(prompt), replace(sampled, seed=i) if i % 2 else greedy)
        for i, prompt in enumerate(prompts)
    ]


def with_room_for(options: EngineOptions, num_tokens: int) -> EngineOptions:
    bytes_per_token = sum(shape.bytes_per_token for shape in load_model(options).kv_shapes)
    return replace(options, kv_cache_memory_bytes=num_tokens * bytes_per_token)


def test_scheduling_does_not_change_a_token_of_a_tiny_model(tiny: Path) -> None:
    rng = random.Random(2)
    prompts = [rng.choices(range(VOCAB_SIZE), k=length) for length in (1, 5, 90, 3, 40, 64)]
    requests = make_requests(prompts, max_tokens=40)
    options = EngineOptions(tiny, device="cpu", max_model_len=160, kv_cache_memory_bytes=2**26)
    core, _ = load_engine(options)
    expected = one_by_one(core, requests)
    assert answers(core, requests) == expected
    ways = [
        replace(options, max_num_seqs=4, max_num_batched_tokens=5),
        replace(options, max_num_batched_tokens=32),
        replace(options, max_num_batched_tokens=77),
        replace(options, block_size=32),
        with_room_for(options, 256),
        # How many drafts there are depends on measured times, and so do preemptions.
        replace(with_room_for(options, 256), num_speculative_tokens=0),
    ]
    cores = [load_engine(way)[0] for way in ways]
    for core in cores:
        assert answers(core, requests, steps_between=2) == expected
    assert cores[-1].stats.num_preemptions > 0


Whole = tuple[list[int], list[TokenLogprobs], list[TokenLogprobs]]


def detailed_outputs(
    core: EngineCore, requests: list[Request], *, steps_between: int = 0
) -> dict[tuple[int, int], Whole]:
    """Return tokens and log probabilities of outputs and prompts, by request and sequence."""
    wholes: dict[tuple[int, int], Whole] = defaultdict(lambda: ([], [], []))

    def step() -> None:
        for output in core.step():
            assert isinstance(output.output, TokenOutput)
            said, logprobs, prompt_logprobs = wholes[output.request_id, output.output.index]
            said += output.output.token_ids
            logprobs += output.output.logprobs
            prompt_logprobs += output.output.prompt_logprobs

    for i, request in enumerate(requests):
        core.add(i, request)
        for _ in range(steps_between):
            step()
    while core.has_unfinished:
        step()
    return dict(wholes)


def requests_with_options() -> list[Request]:
    """Return one request for each option, and one with all options."""
    rng = random.Random(5)
    quoted = FakeConstraint(tuple((i, 8, 8, 9, 7, i, *[6] * 20) for i in range(10, 60)), end=0)
    options: list[dict[str, Any]] = [
        {"presence_penalty": 1.5, "frequency_penalty": 0.5},
        {"repetition_penalty": 1.3},
        {"logit_bias": {3: 2.0, 5: -4.0}, "min_tokens": 30},
        {"allowed_token_ids": frozenset(range(20, 40))},
        {"bad_token_sequences": ((5,), (6, 7), (8,))},
        {"constraint": quoted},
        {"n": 3},
        {"priority": -1},
    ]
    everything = {name: value for option in options[:3] for name, value in option.items()}
    requests = []
    for i, option in enumerate([*options, everything | {"n": 2, "priority": 1}]):
        params = {k: v for k, v in option.items() if hasattr(SamplingParams(), k)}
        rest = {k: v for k, v in option.items() if k not in params}
        # The repetition causes drafts, which must be right under every option.
        prompt = tuple(rng.choices(range(VOCAB_SIZE), k=rng.randrange(3, 12)) * 2)
        sampling = SamplingParams(temperature=i % 2 * 0.7, seed=i, max_tokens=60, **params)
        requests.append(
            Request(
                prompt,
                sampling,
                frozenset({0}) if "min_tokens" in option or "constraint" in option else frozenset(),
                num_logprobs=i % 4 or None,
                num_prompt_logprobs=i % 3 or None,
                caller=Caller(str(i % 4)),
                **rest,
            )
        )
    return requests


def test_no_option_s_answer_depends_on_how_it_was_computed(tiny: Path) -> None:
    """Tokens are equal, and log probabilities are equal in all bits."""
    requests = requests_with_options()
    options = EngineOptions(tiny, device="cpu", max_model_len=160, kv_cache_memory_bytes=2**26)
    core, _ = load_engine(replace(options, num_speculative_tokens=0))
    expected = {
        (i, index): whole
        for i, request in enumerate(requests)
        for (_, index), whole in detailed_outputs(core, [request]).items()
    }
    ways = [
        options,
        replace(options, max_num_seqs=3, max_num_batched_tokens=5),
        replace(options, max_num_batched_tokens=32, prefix_caching=False),
        with_room_for(options, 160),
    ]
    cores = [load_engine(way)[0] for way in ways]
    for core in cores:
        core._clock = steady_clock()
    for core in (*cores, cores[0]):  # the last time with cached prefixes
        assert detailed_outputs(core, requests, steps_between=2) == expected
    assert cores[-1].stats.num_preemptions > 0
    assert all(core.stats.num_accepted_tokens > 0 for core in cores)


NUM_CROWD = 32


@pytest.fixture(scope="module")
def crowd(text: list[int]) -> list[Request]:
    """Return requests with prompts of 5 to 120 tokens and outputs of 24 tokens."""
    rng = random.Random(4)
    starts = rng.sample(range(len(text) - 200), k=NUM_CROWD)
    return make_requests([text[s : s + rng.randrange(5, 120)] for s in starts], max_tokens=24)


@pytest.fixture(scope="module")
def default_options(embedded: Path) -> EngineOptions:
    return with_room_for(EngineOptions(embedded, device="cpu", max_model_len=512), 8192)


@pytest.fixture(scope="module")
def core(default_options: EngineOptions) -> EngineCore:
    return load_engine(default_options)[0]


@pytest.fixture(scope="module")
def crowd_outputs(core: EngineCore, crowd: list[Request]) -> Outputs:
    return answers(core, crowd)


def test_tokens_are_the_same_among_31_other_sequences(
    core: EngineCore, crowd: list[Request], crowd_outputs: Outputs
) -> None:
    assert len({tuple(answer) for answer in crowd_outputs}) == NUM_CROWD
    assert one_by_one(core, crowd[:3]) == crowd_outputs[:3]


WAYS: dict[str, Callable[[EngineOptions], EngineOptions]] = {
    "chunks of 32": lambda options: replace(options, max_num_batched_tokens=32),
    "chunks of 77": lambda options: replace(options, max_num_batched_tokens=77),
}


@pytest.mark.parametrize("way", WAYS)
def test_outputs_do_not_depend_on_batching_and_chunking(
    default_options: EngineOptions, crowd: list[Request], crowd_outputs: Outputs, way: str
) -> None:
    other, _ = load_engine(WAYS[way](default_options))
    assert answers(other, crowd[:6], steps_between=1) == crowd_outputs[:6]


def test_preemption_changes_no_token(
    default_options: EngineOptions, core: EngineCore, crowd: list[Request]
) -> None:
    """The cache has eight blocks for four sequences that need four blocks each."""
    prompts = [list(request.prompt_token_ids[:20]) for request in crowd[:4]]
    requests = make_requests(prompts, max_tokens=90)
    small, _ = load_engine(replace(with_room_for(default_options, 8 * 32), block_size=32))
    assert answers(small, requests, steps_between=1) == one_by_one(core, requests)
    assert small.stats.num_preemptions > 0


def test_again_and_after_others_with_the_same_beginning(
    core: EngineCore, crowd: list[Request]
) -> None:
    """The engine has computed other sequences before."""
    request = max(crowd, key=lambda request: len(request.prompt_token_ids))
    prompt = request.prompt_token_ids
    sampling = SamplingParams(top_p=0.9, seed=7, max_tokens=24)
    longer = Request(prompt + crowd[0].prompt_token_ids, sampling)
    [expected] = one_by_one(core, [longer])
    for others in ([], [Request(prompt, sampling), Request(prompt[:50], sampling)]):
        assert answers(core, [*others, longer], steps_between=3)[-1] == expected
