"""Log probabilities of outputs and prompts."""

from typing import Any

import pytest

from service.domain.engine import Engine
from tests.service.contract.promises import (
    TIED,
    VOCAB_SIZE,
    Definition,
    collect,
    make_prompt,
    make_request,
    skip_unless_served,
    tokens,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.parametrize("num_logprobs", [0, 1, 5])
async def test_each_token_has_its_logprob_and_the_most_likely(
    engine: Engine, definition: Definition, num_logprobs: int
) -> None:
    request = make_request(temperature=1.0, seed=1, n=2, num_logprobs=num_logprobs)
    outputs = await collect(engine, request)
    definition.check(request, outputs)
    entries = [entry for o in outputs for entry in o.logprobs]
    assert {len(entry.top) for entry in entries} == {num_logprobs}
    assert len(entries) == len(tokens(outputs, 0)) + len(tokens(outputs, 1))


async def test_most_logprobs_are_served(engine: Engine, definition: Definition) -> None:
    most = engine.capabilities.max_logprobs
    most = VOCAB_SIZE if most is None else min(most, VOCAB_SIZE)
    request = make_request(num_logprobs=most, num_prompt_logprobs=most, max_tokens=3)
    outputs = await collect(engine, request)
    definition.check(request, outputs)
    assert {len(entry.top) for o in outputs for entry in o.logprobs} == {most}


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.2, "seed": 1},
        {"temperature": 1.0, "seed": 1, "top_p": 0.5, "top_k": 5, "min_p": 0.1},
        {"logit_bias": {50: 100.0}},
        {"presence_penalty": 2.0, "frequency_penalty": 2.0, "repetition_penalty": 1.5},
        {"allowed_token_ids": frozenset({50, 60})},
        {"bad_token_sequences": ((50,), (60, 70))},
    ],
    ids="+".join,
)
async def test_logprobs_are_those_of_the_model_before_any_option(
    engine: Engine, definition: Definition, options: dict[str, Any]
) -> None:
    skip_unless_served(engine, *options)
    request = make_request(num_logprobs=2, num_prompt_logprobs=1, **options)
    definition.check(request, await collect(engine, request))


@pytest.mark.parametrize("num_prompt_logprobs", [0, 1, 5])
async def test_prompt_logprobs_are_in_the_first_output_of_sequence_0(
    engine: Engine, definition: Definition, num_prompt_logprobs: int
) -> None:
    request = make_request(temperature=1.0, seed=1, n=3, num_prompt_logprobs=num_prompt_logprobs)
    for _ in range(2):  # the second time the prompt is in the prefix cache
        outputs = await collect(engine, request)
        definition.check(request, outputs)
        [told] = [o for o in outputs if o.prompt_logprobs]
        assert told.index == 0
        assert len(told.prompt_logprobs) == len(request.prompt_token_ids) - 1
        assert {len(entry.top) for entry in told.prompt_logprobs} == {num_prompt_logprobs}


async def test_prompt_logprobs_of_a_long_prompt(engine: Engine, definition: Definition) -> None:
    request = make_request(make_prompt(7, 250), num_prompt_logprobs=1, max_tokens=2)
    definition.check(request, await collect(engine, request))


async def test_prompt_of_a_single_token_has_no_prompt_logprobs(engine: Engine) -> None:
    outputs = await collect(engine, make_request((50,), num_prompt_logprobs=2, num_logprobs=2))
    assert not any(o.prompt_logprobs for o in outputs)
    assert len(tokens(outputs)) == 12


async def test_equally_likely_tokens_are_in_ascending_order(
    engine: Engine, definition: Definition
) -> None:
    """The model has three tokens that are equally likely after every text."""
    tied = [40, *TIED]
    prompt = next(
        prompt
        for prompt in (make_prompt(seed, 5) for seed in range(2000))
        if 40 in most_likely(definition, prompt, 3)
    )
    outputs = await collect(engine, make_request(prompt, num_logprobs=5, max_tokens=1))
    [entry] = [entry for o in outputs for entry in o.logprobs]
    top = dict(entry.top)
    assert [token_id for token_id in top if token_id in tied] == tied
    assert len({top[token_id] for token_id in tied}) == 1


def most_likely(definition: Definition, prompt: tuple[int, ...], number: int) -> list[int]:
    """Return the most likely tokens after a prompt."""
    logits = definition.logits(prompt)
    return sorted(range(VOCAB_SIZE), key=lambda token_id: (-logits[token_id], token_id))[:number]
