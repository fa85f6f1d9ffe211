"""Parity: under batching, greedy output equals `model.generate`, token for token."""

import itertools
import random
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoConfig

from service.engine.core import EngineCore
from service.engine.load import EngineOptions, load_engine
from service.types import Request, SamplingParams, TokenOutput
from tests.service.engine.models import (
    CONFIGS,
    VOCAB_SIZE,
    kv_bytes_per_token,
    make_config,
    reference,
    save_model,
)

PROMPT_LENS = (1, 5, 19, 3, 12, 30, 2, 8)
MAX_TOKENS = 16


def options(path: Path) -> EngineOptions:
    return EngineOptions(
        path,
        device="cpu",
        dtype="float32",
        max_model_len=48,
        max_num_seqs=4,
        max_num_batched_tokens=7,
        block_size=4,
        kv_cache_memory_bytes=2**30,
    )


def with_small_cache(path: Path) -> EngineOptions:
    """Room for 56 tokens: one long sequence and little beside it."""
    budget = 56 * kv_bytes_per_token(AutoConfig.from_pretrained(path))
    return replace(options(path), kv_cache_memory_bytes=budget)


def prompts() -> list[tuple[int, ...]]:
    rng = random.Random(1)
    return [tuple(rng.choices(range(3, VOCAB_SIZE), k=length)) for length in PROMPT_LENS]


def run(core: EngineCore, requests: list[Request], *, steps_between: int = 2) -> list[list[int]]:
    """What the core answers to requests that come one after the other while it works."""
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


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_answers_are_those_of_generate(name: str, tmp_path: Path) -> None:
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
def llama_answers(llama: Path) -> list[list[int]]:
    generate = reference(llama)
    return [generate(prompt, MAX_TOKENS) for prompt in prompts()]


@pytest.mark.parametrize(
    ("max_num_batched_tokens", "block_size"), [(4, 1), (5, 3), (6, 16), (9, 3), (64, 1), (64, 16)]
)
def test_neither_budget_nor_block_size_changes_a_token(
    llama: Path, llama_answers: list[list[int]], max_num_batched_tokens: int, block_size: int
) -> None:
    core, _ = load_engine(
        replace(
            options(llama), max_num_batched_tokens=max_num_batched_tokens, block_size=block_size
        )
    )
    greedy = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
    got = run(core, [Request(prompt, greedy) for prompt in prompts()])
    assert got == llama_answers


def test_what_is_cached_changes_no_token(llama: Path, llama_answers: list[list[int]]) -> None:
    """Each prompt comes again, then with its answer and more as the prompt of a second turn."""
    core, _ = load_engine(options(llama))
    greedy = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
    requests = [Request(prompt, greedy) for prompt in prompts()]
    assert run(core, requests) == llama_answers
    num_hits = core.stats.num_prefix_cache_hits
    assert run(core, requests) == llama_answers
    assert core.stats.num_prefix_cache_hits - num_hits == sum((n - 1) // 4 * 4 for n in PROMPT_LENS)
    generate = reference(llama)
    turns = [
        (*prompt, *said[:-1], 5)
        for prompt, said in zip(prompts(), llama_answers, strict=True)
        if len(prompt) < 20
    ]
    assert run(core, [Request(turn, greedy) for turn in turns]) == [
        generate(turn, MAX_TOKENS)[: 48 - len(turn)] for turn in turns
    ]


@pytest.mark.parametrize("num_speculative_tokens", [0, 1, 3, 8])
def test_drafts_change_no_token(llama: Path, num_speculative_tokens: int) -> None:
    """Prompts that repeat themselves, so that there is something to guess, in a crowd."""
    turns = [prompt[:5] * 2 for prompt in prompts()]
    core, _ = load_engine(
        replace(with_small_cache(llama), num_speculative_tokens=num_speculative_tokens)
    )
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
        answers.append(run(core, [request]))
    assert core.stats.num_draft_tokens > 0
    assert answers[0] == answers[1]


def test_an_aborted_neighbour_leaves_nothing_behind(
    llama: Path, llama_answers: list[list[int]]
) -> None:
    core, _ = load_engine(options(llama))
    greedy = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
    core.add(100, Request(prompts()[5], greedy))
    for _ in range(6):
        core.step()
    core.abort(100)
    got = run(core, [Request(prompt, greedy) for prompt in prompts()])
    assert got == llama_answers


def test_a_seed_gives_the_same_answer_alone_and_in_a_crowd(llama: Path) -> None:
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
    alone = [run(core, [request])[0] for request in requests]
    assert together == alone
    other_seeds = [
        replace(request, sampling=replace(request.sampling, seed=100 + i))
        for i, request in enumerate(requests)
    ]
    assert run(core, other_seeds) != together


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
