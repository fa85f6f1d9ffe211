"""The effect of each sampling parameter and rule on the tokens."""

import math
from typing import Any

import pytest

from service.domain.engine import Engine, Request
from service.domain.sampling import SamplingParams
from tests.service.contract.promises import (
    END,
    MAX_TEMPERATURE,
    VOCAB_SIZE,
    Definition,
    collect,
    generate,
    make_request,
    skip_unless_served,
    tokens,
    with_sampling,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_allowed_tokens_are_the_only_ones(engine: Engine, definition: Definition) -> None:
    skip_unless_served(engine, "allowed_token_ids")
    allowed = frozenset(range(50, 60))
    request = make_request(allowed_token_ids=allowed)
    outputs = await collect(engine, request)
    assert set(tokens(outputs)) <= allowed
    definition.check(request, outputs)


async def test_bad_sequence_of_a_single_token_is_never_generated(
    engine: Engine, definition: Definition
) -> None:
    skip_unless_served(engine, "bad_token_sequences")
    greedy = await generate(engine)
    request = make_request(bad_token_sequences=((greedy[0],), (greedy[3],)))
    outputs = await collect(engine, request)
    assert not {greedy[0], greedy[3]} & set(tokens(outputs))
    definition.check(request, outputs)


async def test_bad_sequence_of_several_tokens_is_never_generated(
    engine: Engine, definition: Definition
) -> None:
    skip_unless_served(engine, "bad_token_sequences")
    greedy = await generate(engine)
    request = make_request(bad_token_sequences=(tuple(greedy[2:5]),))
    outputs = await collect(engine, request)
    assert tokens(outputs)[:4] == greedy[:4]  # the tokens by themselves are not forbidden
    assert tokens(outputs)[4] != greedy[4]
    definition.check(request, outputs)


async def test_bad_sequence_that_begins_in_the_prompt_is_generated(engine: Engine) -> None:
    skip_unless_served(engine, "bad_token_sequences")
    greedy = await generate(engine)
    bad = (make_request().prompt_token_ids[-1], greedy[0])
    assert await generate(engine, bad_token_sequences=(bad,)) == greedy


@pytest.mark.parametrize("bias", [100.0, -100.0])
async def test_logit_bias_promotes_and_suppresses_tokens(
    engine: Engine, definition: Definition, bias: float
) -> None:
    skip_unless_served(engine, "logit_bias")
    greedy = await generate(engine)
    request = make_request(logit_bias={greedy[0]: bias})
    outputs = await collect(engine, request)
    if bias > 0:
        assert set(tokens(outputs)) == {greedy[0]}
    else:
        assert greedy[0] not in tokens(outputs)
    definition.check(request, outputs)


async def test_logit_bias_is_added_to_the_logit(engine: Engine, definition: Definition) -> None:
    skip_unless_served(engine, "logit_bias")
    logits = definition.logits(make_request().prompt_token_ids)
    first, second = sorted(range(VOCAB_SIZE), key=lambda t: -logits[t])[:2]
    gap = logits[first] - logits[second]
    assert gap > 0.05
    for bias, expected in ((gap - 0.02, first), (gap + 0.02, second)):
        assert await generate(engine, max_tokens=1, logit_bias={second: bias}) == [expected]


PENALTIES: list[dict[str, float]] = [
    {"presence_penalty": 1.5},
    {"presence_penalty": -2.0},
    {"frequency_penalty": 0.7},
    {"frequency_penalty": -2.0},
    {"repetition_penalty": 1.5},
    {"repetition_penalty": 0.5},
    {"presence_penalty": 0.5, "frequency_penalty": 0.3, "repetition_penalty": 1.2},
]


@pytest.mark.parametrize("penalties", PENALTIES, ids=str)
async def test_penalties_apply_to_tokens_that_occurred(
    engine: Engine, definition: Definition, penalties: dict[str, float]
) -> None:
    skip_unless_served(engine, *penalties)
    plain = make_request(max_tokens=60, prompt=5)
    request = with_sampling(plain, **penalties)
    outputs = await collect(engine, request)
    definition.check(request, outputs)
    assert tokens(outputs) != tokens(await collect(engine, plain))


async def test_repetition_penalty_counts_tokens_of_the_prompt(
    engine: Engine, definition: Definition
) -> None:
    skip_unless_served(engine, "repetition_penalty", "allowed_token_ids", "logit_bias")
    first = make_request().prompt_token_ids[0]
    logit = definition.logits(make_request().prompt_token_ids)[first]
    other = next(t for t in range(100, VOCAB_SIZE) if t not in make_request().prompt_token_ids)
    options: dict[str, Any] = {
        "allowed_token_ids": frozenset({first, other}),
        # The logits are 4 and 3.
        "logit_bias": {
            first: 4.0 - logit,
            other: 3.0 - definition.logits(make_request().prompt_token_ids)[other],
        },
        "max_tokens": 1,
    }
    assert await generate(engine, **options) == [first]
    assert await generate(engine, **options, repetition_penalty=1.2) == [first]
    # The bias comes before the penalty: 4 / 1.5 is less than 3.
    assert await generate(engine, **options, repetition_penalty=1.5) == [other]
    for penalty in ("presence_penalty", "frequency_penalty"):
        assert await generate(engine, **options, **{penalty: 2.0}) == [first]


async def test_min_tokens_forbids_stop_tokens(engine: Engine, definition: Definition) -> None:
    skip_unless_served(engine, "min_tokens", "logit_bias")
    options: dict[str, Any] = {
        "stop_token_ids": frozenset({END, 7}),
        "logit_bias": {END: 100.0, 7: 50.0},
    }
    assert await generate(engine, **options) == [END]
    request = make_request(**options, min_tokens=5)
    outputs = await collect(engine, request)
    assert len(tokens(outputs)) == 6
    assert tokens(outputs)[5] == END
    definition.check(request, outputs)


@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {"temperature": 1e-6}, {"top_k": 1}, {"top_p": 0.0}], ids=str
)
async def test_greedy_parameters_give_the_most_likely_tokens(
    engine: Engine, options: dict[str, float]
) -> None:
    skip_unless_served(engine, *options)
    expected = await generate(engine)
    for seed in range(3):
        assert await generate(engine, **{"temperature": 1.0, "seed": seed} | options) == expected


NUM_DRAWS = 200


def known_shares(definition: Definition, shares: dict[int, float]) -> dict[str, Any]:
    """Return options with which the first token has these probabilities."""
    row = definition.logits(make_request().prompt_token_ids)
    return {
        "temperature": 1.0,
        "allowed_token_ids": frozenset(shares),
        "logit_bias": {token_id: math.log(p) - row[token_id] for token_id, p in shares.items()},
    }


async def first_tokens(engine: Engine, **options: Any) -> tuple[Request, list[int]]:
    """Return a request, and the first tokens of its many sequences."""
    request = make_request(max_tokens=1, seed=11, n=NUM_DRAWS, **options)
    outputs = await collect(engine, request)
    return request, [tokens(outputs, index)[0] for index in range(NUM_DRAWS)]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
async def test_temperature_scales_the_logits(
    engine: Engine, definition: Definition, temperature: float
) -> None:
    if temperature > MAX_TEMPERATURE.get(engine.capabilities.name, temperature):
        pytest.skip("the engine does not serve this temperature")
    request, drawn = await first_tokens(engine, temperature=temperature)
    chances = definition.chances(request)
    # The share of the likeliest tokens, which have half of the probability together.
    likely, mass = set(), 0.0
    for token_id in sorted(chances, key=lambda t: -chances[t]):
        if mass >= 0.5:
            break
        likely.add(token_id)
        mass += chances[token_id]
    deviation = math.sqrt(NUM_DRAWS * mass * (1 - mass))
    found = sum(token_id in likely for token_id in drawn)
    assert abs(found - NUM_DRAWS * mass) <= 5 * deviation + 1


@pytest.mark.parametrize(
    "options",
    [{"top_k": 3}, {"top_p": 0.4}, {"min_p": 0.2}, {"top_k": 300}, {"top_k": 1000}],
    ids=str,
)
async def test_filters_keep_the_likeliest_tokens(
    engine: Engine, definition: Definition, options: dict[str, float]
) -> None:
    skip_unless_served(engine, *options)
    request, drawn = await first_tokens(engine, temperature=1.5, **options)
    assert set(drawn) <= set(definition.chances(request, slack=1e-3))
    assert len(set(drawn)) > 1


@pytest.mark.parametrize(
    ("first", "num_left"), [({}, 5), ({"top_k": 2}, 2), ({"min_p": 0.65}, 2)], ids=str
)
async def test_top_p_is_a_share_of_what_other_filters_leave(
    engine: Engine, definition: Definition, first: dict[str, float], num_left: int
) -> None:
    skip_unless_served(engine, "top_p", "allowed_token_ids", "logit_bias", *first)
    options = known_shares(definition, {50: 0.3, 51: 0.2, 52: 0.19, 53: 0.16, 54: 0.15})
    _, drawn = await first_tokens(engine, **options, **first)
    assert set(drawn) == set(range(50, 50 + num_left))
    _, drawn = await first_tokens(engine, **options, **first, top_p=0.55)
    # The first token has 0.3 of all, and 0.6 of the two that are left.
    assert set(drawn) == ({50, 51, 52} if num_left == 5 else {50})


async def test_seed_makes_sampling_reproducible(engine: Engine, definition: Definition) -> None:
    skip_unless_served(engine, "seed")
    request = make_request(temperature=1.0, seed=5, max_tokens=20)
    outputs = await collect(engine, request)
    definition.check(request, outputs)
    assert tokens(await collect(engine, request)) == tokens(outputs)
    other = with_sampling(request, seed=6)
    assert tokens(await collect(engine, other)) != tokens(outputs)


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, -(2**63)])
async def test_every_seed_of_64_bits_is_served(engine: Engine, seed: int) -> None:
    skip_unless_served(engine, "seed")
    options: dict[str, Any] = {"temperature": 1.0, "seed": seed}
    assert await generate(engine, **options) == await generate(engine, **options)


async def test_sequences_of_a_request_differ_and_are_reproducible(
    engine: Engine, definition: Definition
) -> None:
    skip_unless_served(engine, "seed")
    request = make_request(temperature=1.0, seed=5, max_tokens=20, n=4)
    outputs = await collect(engine, request)
    definition.check(request, outputs)
    found = [tokens(outputs, index) for index in range(4)]
    assert len(set(map(tuple, found))) == 4
    again = await collect(engine, request)
    assert [tokens(again, index) for index in range(4)] == found


async def test_requests_without_a_seed_differ(engine: Engine) -> None:
    found = [await generate(engine, temperature=1.0, max_tokens=20) for _ in range(2)]
    assert found[0] != found[1]


async def test_parameters_of_the_text_layer_have_no_effect(engine: Engine) -> None:
    """Stop strings and bad words are texts, and an engine has no text."""
    texts = SamplingParams(
        stop=("a",), bad_words=("b",), skip_special_tokens=False, include_stop_str_in_output=True
    )
    options = {
        name: getattr(texts, name)
        for name in ("stop", "bad_words", "skip_special_tokens", "include_stop_str_in_output")
    }
    assert await generate(engine, **options) == await generate(engine)
