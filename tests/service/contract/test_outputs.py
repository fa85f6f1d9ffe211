"""The items of `Engine.generate`: their order, contents, timings and end."""

from contextlib import aclosing

import pytest

from service.domain.engine import Caller, Engine, EngineTimings, FinishReason, TokenOutput
from service.errors import ContextLengthExceeded
from tests.fakes.wait import failsafe
from tests.service.contract.promises import (
    END,
    Definition,
    collect,
    finish_reason,
    generate,
    make_prompt,
    make_request,
    skip_unless_served,
    tokens,
    until_idle,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")


def times(timings: EngineTimings | None) -> list[float]:
    """Return the times of the events so far, in the order in which they must happen."""
    assert timings is not None
    every = [timings.queued_s, timings.scheduled_s, timings.first_token_s, timings.last_token_s]
    known = [time_s for time_s in every if time_s is not None]
    assert every[: len(known)] == known
    return known


async def test_first_item_has_no_token_and_only_the_time_of_admission(engine: Engine) -> None:
    first, *_ = await collect(engine, make_request())
    assert first == TokenOutput()
    assert len(times(first.timings)) == 1


async def test_second_item_without_a_token_reports_the_first_step(engine: Engine) -> None:
    outputs = await collect(engine, make_request())
    num_empty = [o.is_progress for o in outputs].index(False)
    assert num_empty in {1, 2}
    if num_empty == 2:
        assert len(times(outputs[1].timings)) == 2
    assert not any(o.is_progress for o in outputs[num_empty:])


async def test_later_items_have_tokens_or_a_finish_reason_of_one_sequence(
    engine: Engine, definition: Definition
) -> None:
    request = make_request(temperature=1.0, seed=3, n=3)
    outputs = await collect(engine, request)
    definition.check(request, outputs)
    assert {o.index for o in outputs} == {0, 1, 2}
    assert [len(tokens(outputs, index)) for index in range(3)] == [12, 12, 12]


async def test_timings_of_items_increase(engine: Engine) -> None:
    outputs = await collect(engine, make_request(n=2))
    before: list[float] = []
    num_tokens = 0
    for output in outputs:
        now = times(output.timings)
        assert now == sorted(now)
        # The time of the last token is the only one that changes.
        assert now[: min(3, len(before))] == before[:3]
        assert now[3:] >= before[3:]
        assert output.timings is not None
        assert output.timings.num_tokens >= num_tokens
        before, num_tokens = now, output.timings.num_tokens
    assert len(before) == 4
    assert num_tokens == 24


async def test_slow_consumer_gets_merged_items(engine: Engine) -> None:
    request = make_request(num_logprobs=1, num_prompt_logprobs=1, max_tokens=30, n=2)
    expected = await collect(engine, request)
    async with failsafe(), aclosing(engine.generate(request)) as slow:
        outputs = [await anext(slow)]
        while not outputs[-1].token_ids:
            outputs.append(await anext(slow))
        await until_idle(engine)
        # The queue of a request is in the order of steps, so another request comes after it.
        await generate(engine, prompt=9)
        outputs += [output async for output in slow]
    assert max(len(output.token_ids) for output in outputs) > 1
    for index in range(2):
        fast, merged = (
            [o for o in each if o.index == index and not o.is_progress]
            for each in (expected, outputs)
        )
        assert tokens(merged, index) == tokens(fast, index)
        assert len(merged) <= 3
        for name in ("logprobs", "prompt_logprobs"):
            entries = [
                [e.token_id for o in each for e in getattr(o, name)] for each in (fast, merged)
            ]
            assert entries[0] == entries[1]
        assert merged[-1].finish_reason is FinishReason.LENGTH


async def test_greedy_output_is_most_likely_and_reproducible(
    engine: Engine, definition: Definition
) -> None:
    request = make_request(max_tokens=40)
    outputs = await collect(engine, request)
    definition.check(request, outputs)
    assert tokens(await collect(engine, request)) == tokens(outputs)


@pytest.mark.parametrize("max_tokens", [None, 10_000])
async def test_max_tokens_is_limited_to_the_context(engine: Engine, max_tokens: int | None) -> None:
    prompt = make_prompt(1, engine.max_model_len - 5)
    outputs = await collect(engine, make_request(prompt, max_tokens=max_tokens))
    assert len(tokens(outputs)) == 5
    assert finish_reason(outputs) is FinishReason.LENGTH


async def test_prompt_of_the_context_length_is_rejected(engine: Engine) -> None:
    prompt = make_prompt(1, engine.max_model_len)
    with pytest.raises(ContextLengthExceeded) as caught:
        await anext(engine.generate(make_request(prompt)))
    assert caught.value.prompt_tokens == caught.value.max_model_len == engine.max_model_len
    assert len(await generate(engine, prompt=prompt[1:])) == 1


async def test_stop_token_ends_the_sequence(engine: Engine, definition: Definition) -> None:
    greedy = await generate(engine)
    stop = greedy[4]
    request = make_request(stop_token_ids=frozenset({stop, END}))
    outputs = await collect(engine, request)
    assert tokens(outputs) == greedy[: greedy.index(stop) + 1]
    assert finish_reason(outputs) is FinishReason.STOP
    definition.check(request, outputs)


async def test_stop_token_as_the_last_permitted_token_is_a_stop(engine: Engine) -> None:
    [stop] = await generate(engine, max_tokens=1)
    outputs = await collect(engine, make_request(max_tokens=1, stop_token_ids=frozenset({stop})))
    assert finish_reason(outputs) is FinishReason.STOP


async def test_own_end_token_of_the_model_ends_only_requests_that_name_it(engine: Engine) -> None:
    skip_unless_served(engine, "logit_bias")
    request = make_request(max_tokens=3, logit_bias={END: 100.0})
    outputs = await collect(engine, request)
    assert tokens(outputs) == [END] * 3
    assert finish_reason(outputs) is FinishReason.LENGTH


async def test_sequence_without_an_allowed_token_stops(
    engine: Engine, definition: Definition
) -> None:
    skip_unless_served(engine, "allowed_token_ids", "bad_token_sequences")
    request = make_request(
        allowed_token_ids=frozenset({50, 60}),
        bad_token_sequences=((50, 60), (60, 50), (50, 50, 50), (60, 60, 60)),
    )
    outputs = await collect(engine, request)
    assert tokens(outputs) in ([50, 50], [60, 60])
    definition.check(request, outputs)


async def test_sending_an_index_ends_that_sequence(engine: Engine) -> None:
    request = make_request(temperature=1.0, seed=1, n=3, max_tokens=200)
    async with failsafe(), aclosing(engine.generate(request)) as outputs:
        assert await anext(outputs) == TokenOutput()
        while not (first := await anext(outputs)).token_ids:
            pass
        rest = [await outputs.asend(first.index)]
        rest += [output async for output in outputs]
    others = {0, 1, 2} - {first.index}
    assert {output.index for output in rest} == others
    for index in others:
        assert finish_reason(rest, index) is FinishReason.LENGTH
    await until_idle(engine)


async def test_ending_the_only_sequence_ends_the_request(engine: Engine) -> None:
    async with failsafe(), aclosing(engine.generate(make_request(max_tokens=None))) as outputs:
        while not (await anext(outputs)).token_ids:
            pass
        with pytest.raises(StopAsyncIteration):
            await outputs.asend(0)
    await until_idle(engine)


async def test_sequence_without_any_token_has_no_logprobs(
    engine: Engine, definition: Definition
) -> None:
    skip_unless_served(engine, "allowed_token_ids", "bad_token_sequences")
    request = make_request(
        allowed_token_ids=frozenset({50}), bad_token_sequences=((50,),), num_logprobs=2
    )
    outputs = await collect(engine, request)
    assert tokens(outputs) == []
    definition.check(request, outputs)


@pytest.mark.parametrize("num_items", [0, 1, 2, 3])
async def test_closing_the_generator_frees_its_resources(engine: Engine, num_items: int) -> None:
    stream = engine.generate(make_request(temperature=1.0, max_tokens=None, n=2))
    async with failsafe():
        for _ in range(num_items):
            await anext(stream)
        await stream.aclose()
        await until_idle(engine)


async def test_cached_prompt_tokens_are_reported(engine: Engine) -> None:
    prompt = make_prompt(100, 200)

    async def num_cached(**options: object) -> int:
        outputs = await collect(engine, make_request(prompt, **options))
        [number] = {o.num_cached_tokens for o in outputs if o.token_ids}
        return number

    assert await num_cached() == 0
    before = engine.stats()
    again = await num_cached()
    assert 0 < again < len(prompt)
    after = engine.stats()
    assert after.num_prefix_cache_hits - before.num_prefix_cache_hits == again
    assert after.num_prefix_cache_queries - before.num_prefix_cache_queries == len(prompt)


@pytest.mark.parametrize("field", ["cache_salt", "caller"])
async def test_prompt_prefixes_are_shared_only_within_a_salt_and_a_namespace(
    engine: Engine, field: str
) -> None:
    skip_unless_served(engine, field)
    values: dict[str, tuple[object, object]] = {
        "cache_salt": ("one", "two"),
        "caller": (Caller(cache_namespace="one"), Caller(cache_namespace="two")),
    }
    prompt = make_prompt(101 if field == "caller" else 102, 200)
    found = []
    for value in (*values[field], values[field][0]):
        outputs = await collect(engine, make_request(prompt, **{field: value}))
        found.append(outputs[-1].num_cached_tokens > 0)
    assert found == [False, False, True]
