"""Requests with any combination of options, separately and together."""

import asyncio
import math
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.domain.engine import Caller, Engine, Request
from service.domain.engine_settings import EngineModel
from service.text.grammars import CompiledGrammars
from tests.service.contract.kinds import Kind
from tests.service.contract.promises import (
    END,
    MAX_TEMPERATURE,
    VOCAB_SIZE,
    Definition,
    collect,
    make_prompt,
    make_request,
    until_idle,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")

GRAMMARS = ['start: "Hello" | "world"', "start: /[a-z ]{1,8}/", 'start: ("ab" | "c")+']

token_ids = st.integers(2, VOCAB_SIZE - 1)
# Each field is set in some requests only. `constraint` is the number of a grammar.
OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.sampled_from([0.0, 0.7, 1.0, 2.0]),
    "top_p": st.sampled_from([0.0, 0.5, 0.95]),
    "top_k": st.sampled_from([1, 5, 50, 1000]),
    "min_p": st.sampled_from([0.05, 1.0]),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "max_tokens": st.integers(1, 12),
    "presence_penalty": st.floats(-2.0, 2.0),
    "frequency_penalty": st.floats(-2.0, 2.0),
    "repetition_penalty": st.floats(0.1, 3.0),
    "logit_bias": st.dictionaries(token_ids, st.floats(-100.0, 100.0), max_size=4),
    "min_tokens": st.integers(0, 15),
    "allowed_token_ids": st.frozensets(token_ids, min_size=20, max_size=40),
    "bad_token_sequences": st.lists(
        st.lists(token_ids, min_size=1, max_size=3).map(tuple), min_size=1, max_size=4
    ).map(tuple),
    "stop_token_ids": st.frozensets(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=50),
    "n": st.integers(1, 3),
    "priority": st.integers(-3, 3),
    "cache_salt": st.sampled_from(["a", "b"]),
    "num_logprobs": st.integers(0, 5),
    "num_prompt_logprobs": st.integers(0, 5),
    "caller": st.sampled_from([Caller("a"), Caller("b", weight=2), Caller(cache_namespace="c")]),
    "constraint": st.sampled_from(GRAMMARS),
}


@st.composite
def chosen_options(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.sets(st.sampled_from(sorted(OPTIONS)), max_size=8))
    # A grammar and the allowed tokens would leave no token in most cases.
    names -= {"allowed_token_ids"} if "constraint" in names else set()
    return {name: draw(OPTIONS[name]) for name in sorted(names)}


def served(
    engine: Engine, grammars: CompiledGrammars, chosen: dict[str, Any], prompt: tuple[int, ...]
) -> Request:
    """Return a request with those of the options that the engine serves."""
    options: dict[str, Any] = {"max_tokens": 12} | {
        name: value for name, value in chosen.items() if name not in engine.capabilities.unsupported
    }
    if options.get("temperature", 0.0) > MAX_TEMPERATURE.get(engine.capabilities.name, math.inf):
        options["temperature"] = MAX_TEMPERATURE[engine.capabilities.name]
    if "constraint" in options:
        options["constraint"] = grammars.compile(options["constraint"])
        options["stop_token_ids"] = frozenset({END, *options.get("stop_token_ids", ())})
        if engine.capabilities.masks_logprobs:
            options.pop("num_logprobs", None)
    return make_request(prompt, **options)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(chosen=chosen_options(), prompt=st.integers(0, 20), length=st.integers(1, 60))
async def test_any_combination_of_options_follows_the_definitions(
    engine: Engine,
    definition: Definition,
    grammars: CompiledGrammars,
    chosen: dict[str, Any],
    prompt: int,
    length: int,
) -> None:
    request = served(engine, grammars, chosen, make_prompt(prompt, length))
    definition.check(request, await collect(engine, request))


def mixed_requests(engine: Engine, grammars: CompiledGrammars) -> list[Request]:
    """Return 40 requests with various options. Each is greedy or has a seed."""
    rng = random.Random(3)
    choices: list[dict[str, Any]] = [
        {"temperature": 1.0},
        {"temperature": 1.0, "top_p": 0.8, "top_k": 20},
        {"presence_penalty": 1.0, "repetition_penalty": 1.2},
        {"temperature": 0.8, "logit_bias": {50: 5.0}, "min_p": 0.05},
        {"allowed_token_ids": frozenset(range(20, 90))},
        {"bad_token_sequences": ((60,), (70, 80))},
        {"constraint": GRAMMARS[1], "temperature": 1.0},
        {"num_logprobs": 3, "num_prompt_logprobs": 2},
        {"n": 3, "temperature": 1.0, "num_logprobs": 0},
        {"caller": Caller("a"), "priority": 2, "cache_salt": "a"},
    ]
    return [
        served(
            engine,
            grammars,
            {"temperature": 0.0, "seed": i, "max_tokens": 10} | choices[i % len(choices)],
            make_prompt(i % 7, rng.randrange(1, 100)),
        )
        for i in range(40)
    ]


async def test_requests_at_once_follow_the_definitions(
    engine: Engine, definition: Definition, grammars: CompiledGrammars
) -> None:
    requests = mixed_requests(engine, grammars)
    found = await asyncio.gather(*(collect(engine, request) for request in requests))
    for request, outputs in zip(requests, found, strict=True):
        definition.check(request, outputs)
    await until_idle(engine)


@pytest_asyncio.fixture(loop_scope="session")
async def invariant(kind: Kind, model: EngineModel) -> AsyncIterator[Engine]:
    """An engine in the precision that it chooses, whose outputs do not depend on the batch."""
    engine = kind.make(dtype="auto", quantization="auto", max_model_len=256, max_queue_size=300)
    await engine.start(model)
    try:
        if not engine.capabilities.is_batch_invariant:
            pytest.skip("the engine's outputs depend on the batch")
        yield engine
    finally:
        await engine.stop()


async def test_requests_at_once_get_the_same_outputs_as_separately(
    invariant: Engine, grammars: CompiledGrammars
) -> None:
    requests = mixed_requests(invariant, grammars)
    together = await asyncio.gather(*(collect(invariant, request) for request in requests))
    for request, outputs in zip(requests, together, strict=True):
        separately = await collect(invariant, request)
        for index in range(request.n):
            for name in ("token_ids", "logprobs", "prompt_logprobs"):
                first, second = (
                    [item for o in each if o.index == index for item in getattr(o, name)]
                    for each in (outputs, separately)
                )
                assert first == second
