"""Waits, copies and kernels of a step on a CUDA device, counted by the simulated device."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
import torch

from service.domain.engine import Request
from service.domain.sampling import SamplingParams
from service.engine.core import EngineCore
from service.engine.load import EngineOptions, load_engine
from tests.fakes.constraint import FakeConstraint
from tests.service.engine.models import VOCAB_SIZE, make_config, save_model
from tests.support import varlen_operator
from tests.support.device import DEVICE
from tests.support.simulated_cuda.device import Counts, counting

pytestmark = pytest.mark.simulated_cuda

NUM_LAYERS = 2
GREEDY = SamplingParams(temperature=0.0, max_tokens=40)

Make = Callable[[int], Request]


def request(index: int, sampling: SamplingParams = GREEDY, **fields: Any) -> Request:
    return Request((*range(5, 14), 5 + index % 60), replace(sampling, seed=index), **fields)


def constrained(index: int) -> Request:
    outputs = tuple((i, *range(20, 60)) for i in range(8, 20 + index % 60))
    return request(index, constraint=FakeConstraint(outputs, end=0))


KINDS: dict[str, Make] = {
    "greedy": request,
    "plain": lambda i: request(i, SamplingParams()),
    "top_p": lambda i: request(i, SamplingParams(top_p=0.999, temperature=5.0)),
    "top_k": lambda i: request(i, SamplingParams(top_k=50, top_p=0.9)),
    "min_p": lambda i: request(i, SamplingParams(min_p=0.01)),
    "penalties": lambda i: request(i, SamplingParams(presence_penalty=1.0, repetition_penalty=1.2)),
    "bias": lambda i: request(i, replace(GREEDY, logit_bias={3: 1.0, 9: -2.0})),
    "min_tokens": lambda i: request(
        i, replace(GREEDY, min_tokens=30), stop_token_ids=frozenset({1, 2})
    ),
    "allowed": lambda i: request(i, replace(GREEDY, allowed_token_ids=frozenset(range(i % 9, 70)))),
    "grammar": constrained,
    "logprobs": lambda i: request(i, num_logprobs=5),
    "prompt_logprobs": lambda i: request(i, num_logprobs=i % 3, num_prompt_logprobs=2),
}


def mixed(index: int) -> Request:
    """Return a request of each kind in turn."""
    return list(KINDS.values())[index % len(KINDS)](index)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = make_config(
        "llama",
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        pad_token_id=None,
        bos_token_id=1,
        eos_token_id=None,
    )
    return save_model(tmp_path_factory.mktemp("llama"), config)


@pytest.fixture(scope="module", autouse=True)
def _kernel() -> None:
    varlen_operator.install("CUDA")


@pytest.fixture(scope="module")
def varlen_core(model: Path) -> EngineCore:
    return load(model, None)


@pytest.fixture(scope="module")
def gathered_core(model: Path) -> EngineCore:
    return load(model, 32)


def load(model: Path, block_size: int | None) -> EngineCore:
    core, _ = load_engine(
        EngineOptions(
            model,
            device=DEVICE,
            dtype="bfloat16",
            block_size=block_size,
            kv_cache_memory_bytes=2**25,
            prefix_caching=False,
        )
    )
    return core


def step_counts(core: EngineCore, requests: list[Request], num_steps: int) -> list[Counts]:
    """Return the counts of the first steps of requests that arrive together.

    Waits and copies of the operator of `varlen_operator` are left out.
    """
    for i, r in enumerate(requests):
        core.add(i, r)
    found = []
    for _ in range(num_steps):
        varlen_operator.calls.clear()
        with counting() as counts:
            core.step()
        num_calls = len(varlen_operator.calls)
        num_reads = num_calls * varlen_operator.READS_PER_CALL
        num_writes = num_calls * varlen_operator.WRITES_PER_CALL
        counts.waits -= num_reads + num_writes
        counts.copies_to_host -= num_reads
        counts.copies_to_device -= num_writes
        found.append(counts)
    for i, _ in enumerate(requests):
        core.abort(i)
    return found


@pytest.mark.parametrize("kind", [*KINDS, "mixed"])
def test_step_waits_once_whatever_its_requests_ask_for(varlen_core: EngineCore, kind: str) -> None:
    """The first of three steps has the prompts of 64 sequences, the others one token of each."""
    make = mixed if kind == "mixed" else KINDS[kind]
    for counts in step_counts(varlen_core, [make(i) for i in range(64)], num_steps=3):
        assert (counts.waits, counts.copies_to_host) == (1, 1)
        # The numbers of the step, those of its rules and filters, the rows of log probabilities,
        # and the tokens of prompts.
        assert counts.copies_to_device <= (1 if kind == "greedy" else 4)


def test_attention_of_a_layer_is_one_call(varlen_core: EngineCore) -> None:
    step_counts(varlen_core, [request(i) for i in range(8)], num_steps=1)
    assert len(varlen_operator.calls) == NUM_LAYERS


@pytest.mark.parametrize("kind", KINDS)
def test_number_of_kernels_does_not_depend_on_the_number_of_sequences(
    gathered_core: EngineCore, kind: str
) -> None:
    """The sequences are similar in length. The first step has their prompts."""
    few, many = (
        step_counts(gathered_core, [KINDS[kind](i) for i in range(n)], num_steps=2) for n in (8, 32)
    )
    for a, b in zip(few, many, strict=True):
        assert a.waits == b.waits == 1
        if kind != "prompt_logprobs":  # they are computed for 32 rows at once
            assert b.kernels == a.kernels


def test_varlen_attention_gives_the_log_probabilities_of_gathered_attention(
    varlen_core: EngineCore, gathered_core: EngineCore
) -> None:
    prompts = [tuple((i * i + n) % 90 + 3 for i in range(n)) for n in (3, 400, 30, 270)]
    told = []
    for core in (varlen_core, gathered_core):
        for i, prompt in enumerate(prompts):
            core.add(i, Request(prompt, replace(GREEDY, max_tokens=1), num_prompt_logprobs=0))
        logprobs: dict[int, list[float]] = {}
        while core.has_unfinished:
            for output in core.step():
                entries = getattr(output.output, "prompt_logprobs", ())
                logprobs.setdefault(output.request_id, []).extend(e.logprob for e in entries)
        told.append([torch.tensor(logprobs[i]) for i in range(len(prompts))])
    for varlen, gathered in zip(*told, strict=True):
        assert len(varlen) > 1
        torch.testing.assert_close(varlen, gathered, atol=0.3, rtol=0.02)


def test_reason_for_another_attention_is_logged_once(model: Path) -> None:
    with structlog.testing.capture_logs() as logs:
        load(model, 16)
        load(model, 16)
    [event] = [entry for entry in logs if entry["event"] == "attention_backend_unavailable"]
    assert (event["backend"], event["reason"]) == (
        "varlen",
        "block_size 16 is not a multiple of 256",
    )
