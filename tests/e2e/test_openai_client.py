"""The real OpenAI client against the real stack and the real model."""

import asyncio
import random
import uuid
from typing import Any

import openai
import pytest

from tests.support.make_serve import MODEL, Served

FRANCE: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]


def test_chat_completion_answers_a_known_question(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(model=MODEL, messages=FRANCE, temperature=0)
    [choice] = completion.choices
    assert "Paris" in (choice.message.content or "")
    assert choice.finish_reason == "stop"
    assert completion.usage is not None
    assert completion.usage.prompt_tokens > 20
    assert (
        completion.usage.total_tokens
        == completion.usage.prompt_tokens + completion.usage.completion_tokens
    )


@pytest.mark.slow
def test_chat_completion_with_defaults_answers_a_known_question(client: openai.OpenAI) -> None:
    for seed in range(5):
        completion = client.chat.completions.create(model=MODEL, messages=FRANCE, seed=seed)
        assert "Paris" in (completion.choices[0].message.content or "")


@pytest.mark.slow
def test_streamed_chat_completion_answers_a_known_question(client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model=MODEL,
        messages=FRANCE,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert "Paris" in text
    assert len({c.id for c in chunks}) == 1
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].choices == []
    whole = client.chat.completions.create(model=MODEL, messages=FRANCE, temperature=0)
    assert text == whole.choices[0].message.content
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


@pytest.mark.slow
def test_second_turn_reports_cached_tokens(client: openai.OpenAI) -> None:
    """Most tokens of the first turn are cached for requests with the same cache salt."""

    def ask(messages: list[Any], salt: str) -> Any:
        return client.chat.completions.create(
            model=MODEL,
            messages=messages,
            temperature=0,
            max_completion_tokens=40,
            extra_body={"cache_salt": salt},
        )

    question = {"role": "user", "content": "Tell me about Paris."}
    first = ask([question], "mine")
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    said = {"role": "assistant", "content": first.choices[0].message.content}
    turns = [question, said, {"role": "user", "content": "And Rome?"}]
    second, apart = ask(turns, "mine"), ask(turns, "another")
    assert second.usage.prompt_tokens_details.cached_tokens > first.usage.prompt_tokens
    assert apart.usage.prompt_tokens_details.cached_tokens == 0


@pytest.mark.slow
def test_stream_helper_of_the_client_collects_the_completion(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=FRANCE, temperature=0) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert "Paris" in (final.choices[0].message.content or "")


@pytest.mark.slow
def test_stop_string_and_max_tokens_end_the_completion(client: openai.OpenAI) -> None:
    stopped = client.chat.completions.create(
        model=MODEL, messages=FRANCE, temperature=0, stop=["Par"]
    )
    assert stopped.choices[0].message.content == "The capital of France is "
    assert stopped.choices[0].finish_reason == "stop"
    limited = client.chat.completions.create(
        model=MODEL, messages=FRANCE, temperature=0, max_completion_tokens=3
    )
    assert limited.choices[0].finish_reason == "length"
    assert limited.usage is not None
    assert limited.usage.completion_tokens == 3


@pytest.mark.slow
def test_list_models_returns_the_served_model(client: openai.OpenAI) -> None:
    [model] = client.models.list().data
    assert model.id == MODEL
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("org/none")


def test_errors_raise_the_exceptions_of_the_client(client: openai.OpenAI) -> None:
    create = client.chat.completions.create
    with pytest.raises(openai.NotFoundError) as unknown:
        create(model="gpt-9", messages=FRANCE)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as too_hot:
        create(model=MODEL, messages=FRANCE, temperature=3)
    assert too_hot.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as too_long:
        create(model=MODEL, messages=[{"role": "user", "content": "word " * 9000}])
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as not_served:
        create(model=MODEL, messages=FRANCE, prediction={"type": "content", "content": "Paris"})
    assert not_served.value.param == "prediction"
    assert not_served.value.code == "unsupported_parameter"


@pytest.mark.slow
async def test_overlapping_requests_get_their_own_completions(served: Served) -> None:
    """32 requests run at once, each with its own parameters."""
    rng = random.Random(7)
    async with openai.AsyncOpenAI(
        base_url=served.base_url, api_key="none", max_retries=0, timeout=None
    ) as client:

        async def ask(i: int) -> None:
            max_tokens = rng.randint(1, 24)
            fields: dict[str, Any] = {
                "model": MODEL,
                "messages": [{"role": "user", "content": f"Count up from {i}. " * (1 + i % 5)}],
                "max_completion_tokens": max_tokens,
                "temperature": rng.choice([0.0, 0.7, 1.3]),
                "top_p": rng.choice([0.5, 1.0]),
                "seed": i,
                "extra_body": {"ignore_eos": True, "top_k": rng.choice([0, 5])},
            }
            if i % 2:
                completion = await client.chat.completions.create(**fields)
                usage, finish = completion.usage, completion.choices[0].finish_reason
            else:
                stream = await client.chat.completions.create(
                    **fields, stream=True, stream_options={"include_usage": True}
                )
                chunks = [chunk async for chunk in stream]
                usage = chunks[-1].usage
                finish = chunks[-2].choices[0].finish_reason
            assert usage is not None
            assert usage.completion_tokens == max_tokens
            assert finish == "length"

        await asyncio.gather(*(ask(i) for i in range(32)))


@pytest.mark.slow
def test_same_seed_gives_the_same_completion(client: openai.OpenAI) -> None:
    def complete(seed: int) -> str:
        completion = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Tell me a story."}],
            seed=seed,
            temperature=1.0,
            max_completion_tokens=8,
            # Avoid a cached prefix: without native kernels, logits depend on the tokens of a step.
            extra_body={"cache_salt": str(uuid.uuid4())},
        )
        return completion.choices[0].message.content or ""

    assert complete(1) == complete(1)
    assert len({complete(seed) for seed in range(4)}) > 1
