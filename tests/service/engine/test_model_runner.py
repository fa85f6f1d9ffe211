"""Each token of a greedy output in a batch equals that of `model.generate`."""

import itertools
import random
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoConfig

from service.domain.engine import FinishReason, Request, TokenLogprobs, TokenOutput
from service.domain.sampling import SamplingParams
from service.engine.block_pool import BlockPool
from service.engine.core import EngineCore
from service.engine.load import EngineOptions, load_engine
from service.engine.model_runner import ModelRunner
from service.engine.scheduler import Scheduler
from service.errors import ConstraintFailed
from tests.fakes.constraint import FakeConstraint, FakeMatcher
from tests.fakes.model import FakeModel
from tests.fakes.runner import steady_clock
from tests.service.engine.models import (
    CONFIGS,
    VOCAB_SIZE,
    kv_bytes_per_token,
    make_config,
    reference,
    reference_logprobs,
    save_model,
)
from tests.support.device import DEVICE
from tests.support.params import slow_but

PROMPT_LENS = (1, 5, 19, 3, 12, 30, 2, 8)
MAX_TOKENS = 16


def options(path: Path) -> EngineOptions:
    return EngineOptions(
        path,
        device=DEVICE,
        dtype="float32",
        max_model_len=48,
        max_num_seqs=4,
        max_num_batched_tokens=7,
        block_size=4,
        kv_cache_memory_bytes=2**30,
    )


def with_small_cache(path: Path) -> EngineOptions:
    """Return options with a cache of 56 tokens: one long sequence and little else."""
    budget = 56 * kv_bytes_per_token(AutoConfig.from_pretrained(path))
    return replace(options(path), kv_cache_memory_bytes=budget)


def prompts() -> list[tuple[int, ...]]:
    rng = random.Random(1)
    return [tuple(rng.choices(range(3, VOCAB_SIZE), k=length)) for length in PROMPT_LENS]


def run(core: EngineCore, requests: list[Request], *, steps_between: int = 2) -> list[list[int]]:
    """Return the outputs of requests that arrive one after the other while the core runs."""
    answers: list[list[int]] = [[] for _ in requests]

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
    assert core.stats.num_free_kv_blocks == core.stats.num_kv_blocks
    return answers


# One model for each kind of attention and of layer.
QUICK = {"llama", "gemma2", "qwen3-moe", "deepseek_v3", "gpt2"}


@pytest.mark.parametrize("name", slow_but(QUICK, CONFIGS))
def test_greedy_outputs_equal_those_of_generate(name: str, tmp_path: Path) -> None:
    model_type, fields = CONFIGS[name]
    path = save_model(tmp_path, make_config(model_type, **fields))
    core, _ = load_engine(with_small_cache(path))
    greedy = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
    got = run(core, [Request(prompt, greedy) for prompt in prompts()])
    generate = reference(path)
    assert got == [generate(prompt, MAX_TOKENS) for prompt in prompts()]
    assert core.stats.num_kv_blocks == 14
    assert core.stats.num_preemptions > 0
    assert len({token for answer in got for token in answer}) > 5, "a babbler proves nothing"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model_type, fields = CONFIGS["llama"]
    return save_model(tmp_path_factory.mktemp("llama"), make_config(model_type, **fields))


@pytest.fixture(scope="module")
def llama_outputs(llama: Path) -> list[list[int]]:
    generate = reference(llama)
    return [generate(prompt, MAX_TOKENS) for prompt in prompts()]


@pytest.mark.parametrize(
    ("max_num_batched_tokens", "block_size"), [(4, 1), (5, 3), (6, 16), (9, 3), (64, 1), (64, 16)]
)
def test_neither_budget_nor_block_size_changes_a_token(
    llama: Path, llama_outputs: list[list[int]], max_num_batched_tokens: int, block_size: int
) -> None:
    core, _ = load_engine(
        replace(
            options(llama), max_num_batched_tokens=max_num_batched_tokens, block_size=block_size
        )
    )
    greedy = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
    got = run(core, [Request(prompt, greedy) for prompt in prompts()])
    assert got == llama_outputs


def test_cached_prefix_changes_no_token(llama: Path, llama_outputs: list[list[int]]) -> None:
    """Each prompt is sent again, then with its output and one more token as a second turn."""
    core, _ = load_engine(options(llama))
    greedy = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
    requests = [Request(prompt, greedy) for prompt in prompts()]
    assert run(core, requests) == llama_outputs
    num_hits = core.stats.num_prefix_cache_hits
    assert run(core, requests) == llama_outputs
    assert core.stats.num_prefix_cache_hits - num_hits == sum((n - 1) // 4 * 4 for n in PROMPT_LENS)
    generate = reference(llama)
    turns = [
        (*prompt, *said[:-1], 5)
        for prompt, said in zip(prompts(), llama_outputs, strict=True)
        if len(prompt) < 20
    ]
    assert run(core, [Request(turn, greedy) for turn in turns]) == [
        generate(turn, MAX_TOKENS)[: 48 - len(turn)] for turn in turns
    ]


@pytest.mark.parametrize("num_speculative_tokens", [0, 1, 3, 8])
def test_drafts_change_no_token(llama: Path, num_speculative_tokens: int) -> None:
    """The prompts repeat themselves, which causes drafts."""
    turns = [prompt[:5] * 2 for prompt in prompts()]
    core, _ = load_engine(
        replace(with_small_cache(llama), num_speculative_tokens=num_speculative_tokens)
    )
    core._clock = steady_clock()
    generate = reference(llama)
    greedy = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
    got = run(core, [Request(turn, greedy) for turn in turns])
    assert got == [generate(turn, MAX_TOKENS) for turn in turns]
    assert (core.stats.num_accepted_tokens > 0) is (num_speculative_tokens > 0)
    assert core.stats.num_preemptions > 0


def test_drafts_change_no_draw(llama: Path) -> None:
    sampling = SamplingParams(temperature=0.3, top_k=3, max_tokens=30, seed=4)
    request = Request((5, 9) * 8, sampling)
    answers = []
    for num_speculative_tokens in (0, 8):
        core, _ = load_engine(
            replace(options(llama), num_speculative_tokens=num_speculative_tokens)
        )
        core._clock = steady_clock()
        answers.append(run(core, [request]))
    assert core.stats.num_draft_tokens > 0
    assert answers[0] == answers[1]


def test_aborted_neighbour_leaves_no_trace(llama: Path, llama_outputs: list[list[int]]) -> None:
    core, _ = load_engine(options(llama))
    greedy = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
    core.add(100, Request(prompts()[5], greedy))
    for _ in range(6):
        core.step()
    core.abort(100)
    got = run(core, [Request(prompt, greedy) for prompt in prompts()])
    assert got == llama_outputs


def test_seed_gives_the_same_output_in_any_batch(llama: Path) -> None:
    filters = itertools.cycle(
        [
            SamplingParams(max_tokens=MAX_TOKENS),
            SamplingParams(max_tokens=MAX_TOKENS, top_p=0.9),
            SamplingParams(max_tokens=MAX_TOKENS, top_k=5),
            SamplingParams(max_tokens=MAX_TOKENS, min_p=0.1),
            SamplingParams(max_tokens=MAX_TOKENS, temperature=0.7),
        ]
    )
    requests = [
        Request(prompt, replace(next(filters), seed=i)) for i, prompt in enumerate(prompts())
    ]
    core, _ = load_engine(with_small_cache(llama))
    together = run(core, requests)
    assert core.stats.num_preemptions > 0
    separate = [run(core, [request])[0] for request in requests]
    assert together == separate
    other_seeds = [
        replace(request, sampling=replace(request.sampling, seed=100 + i))
        for i, request in enumerate(requests)
    ]
    assert run(core, other_seeds) != together


@pytest.mark.parametrize("name", ["llama", "gemma2", "granite", "gpt2"])
def test_log_probabilities_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    """Prompts and outputs are checked in a large batch, with chunks, preemption and penalties."""
    model_type, fields = CONFIGS[name]
    path = save_model(tmp_path, make_config(model_type, **fields))
    core, _ = load_engine(with_small_cache(path))
    sampling = SamplingParams(max_tokens=MAX_TOKENS, presence_penalty=1.0, repetition_penalty=1.2)
    for i, prompt in enumerate(prompts()):
        params = replace(sampling, seed=i)
        core.add(i, Request(prompt, params, num_logprobs=4, num_prompt_logprobs=2))
    told: list[list[TokenLogprobs]] = [[] for _ in prompts()]
    while core.has_unfinished:
        for output in core.step():
            assert isinstance(output.output, TokenOutput)
            told[output.request_id] += output.output.prompt_logprobs + output.output.logprobs
    assert core.stats.num_preemptions > 0
    logprobs_of = reference_logprobs(path)
    for prompt, entries in zip(prompts(), told, strict=True):
        token_ids = (prompt[0], *(entry.token_id for entry in entries))
        assert token_ids[: len(prompt)] == prompt
        assert len(token_ids) == len(prompt) + MAX_TOKENS
        expected = logprobs_of(token_ids)
        for position, entry in enumerate(entries):
            row = expected[position]
            assert entry.logprob == pytest.approx(row[entry.token_id].item(), abs=1e-4)
            best = row.topk(2 if position < len(prompt) - 1 else 4)
            assert [p for _, p in entry.top] == pytest.approx(best.values.tolist(), abs=1e-4)
            assert all(row[t].item() == pytest.approx(p, abs=1e-4) for t, p in entry.top)


def core_over(model: FakeModel, num_speculative_tokens: int = 8) -> EngineCore:
    scheduler = Scheduler(BlockPool(100, 4), 4, 512, num_speculative_tokens)
    return EngineCore(scheduler, ModelRunner(model), 400, clock=steady_clock())


def outputs_of(core: EngineCore, request: Request, request_id: int = 0) -> list[TokenOutput]:
    core.add(request_id, request)
    outputs: list[TokenOutput] = []
    while core.has_unfinished:
        for output in core.step():
            assert isinstance(output.output, TokenOutput)
            outputs.append(output.output)
    return outputs


END = 0


def test_output_ends_when_no_token_is_allowed() -> None:
    """Only the end is allowed, and it may not come yet."""
    params = SamplingParams(allowed_token_ids=frozenset({END}), min_tokens=3)
    request = Request((5,), params, frozenset({END}))
    [output] = outputs_of(core_over(FakeModel(4)), request)
    assert (output.token_ids, output.finish_reason) == ((), FinishReason.STOP)


def test_output_that_fulfils_its_grammar_ends() -> None:
    """The output ends with its stop token or, without one, when the grammar allows no token."""
    constraint = FakeConstraint(((3, 4),), END)
    request = Request((5,), SamplingParams(), frozenset({END}), constraint=constraint)
    for stop_token_ids in (frozenset({END}), frozenset[int]()):
        outputs = outputs_of(
            core_over(FakeModel(4)), replace(request, stop_token_ids=stop_token_ids)
        )
        assert [t for o in outputs for t in o.token_ids] == [3, 4, END]
        assert outputs[-1].finish_reason is FinishReason.STOP
        assert bool(outputs[-1].token_ids) is bool(stop_token_ids)


def test_forced_tokens_take_no_step_of_their_own() -> None:
    constraint = FakeConstraint((tuple(range(1, 13)),), END)
    request = Request((5,), SamplingParams(), frozenset({END}), constraint=constraint)
    for num_speculative_tokens, num_steps in ((0, 13), (8, 2)):
        core = core_over(FakeModel(4), num_speculative_tokens)
        outputs = outputs_of(core, request)
        assert [t for o in outputs for t in o.token_ids] == [*range(1, 13), END]
        assert core.stats.num_steps == num_steps


def test_failing_grammar_ends_only_its_own_request() -> None:
    core = core_over(FakeModel(4))
    failing = FakeConstraint(((3, 4, 5), (3, 4, 6)), END, fails_at=2)
    plain = Request((5,), SamplingParams(temperature=0.0, max_tokens=9))
    core.add(0, replace(plain, constraint=failing, n=2))
    core.add(1, plain)
    outputs = []
    while core.has_unfinished:
        outputs += core.step()
    [error] = [o.output for o in outputs if o.request_id == 0 and not hasattr(o.output, "index")]
    assert isinstance(error, ConstraintFailed)
    said = [o.output for o in outputs if o.request_id == 1]
    assert sum(len(o.token_ids) for o in said if isinstance(o, TokenOutput)) == 9
    assert (core.stats.num_failed_steps, core.stats.num_running) == (0, 0)


def test_masks_are_computed_on_another_thread() -> None:
    threads = set()

    class Watching(FakeMatcher):
        def allowed_tokens(self) -> bytes:
            threads.add(threading.current_thread())
            return super().allowed_tokens()

    class WatchedConstraint(FakeConstraint):
        def matcher(self) -> FakeMatcher:
            return Watching(self)

    constraint = WatchedConstraint(((3, 4),), END)
    request = Request((5,), SamplingParams(), frozenset({END}), constraint=constraint)
    outputs_of(core_over(FakeModel(4)), request)
    assert threads
    assert threading.current_thread() not in threads


def test_logits_of_a_long_prompt_are_computed_in_parts() -> None:
    model = FakeModel(4)
    prompt = tuple(i * i % 13 for i in range(200))
    request = Request(prompt, SamplingParams(max_tokens=1), num_prompt_logprobs=3)
    [output] = outputs_of(core_over(model), request)
    assert len(output.prompt_logprobs) == 199
    assert model.most_rows <= 32


def test_prompt_with_logprobs_is_computed_and_cached() -> None:
    core = core_over(FakeModel(4))
    prompt = tuple(i * i % 13 for i in range(30))
    plain = Request(prompt, SamplingParams(temperature=0.0, max_tokens=3))
    asking = replace(plain, num_prompt_logprobs=0)
    first = outputs_of(core, asking, 0)
    again = outputs_of(core, asking, 1)
    assert first == again
    assert len(first[0].prompt_logprobs) == 29
    assert not any(o.prompt_logprobs for o in first[1:])
    assert {o.num_cached_tokens for o in outputs_of(core, plain, 2)} == {28}
    assert core.stats.num_prefix_cache_queries == 30


def test_long_rotary_embeddings_are_served_where_they_do_not_depend_on_neighbours(
    tmp_path: Path,
) -> None:
    fields = CONFIGS["phi3"][1] | {
        "sliding_window": None,
        "original_max_position_embeddings": 40,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 4,
            "long_factor": [3.0] * 4,
            "original_max_position_embeddings": 40,
        },
    }
    path = save_model(tmp_path, make_config("phi3", **fields))
    core, max_model_len = load_engine(replace(options(path), max_model_len=None))
    assert max_model_len == 40
    greedy = SamplingParams(temperature=0.0, max_tokens=10)
    got = run(core, [Request(prompt, greedy) for prompt in prompts()])
    generate = reference(path)
    assert got == [generate(prompt, 10) for prompt in prompts()]
