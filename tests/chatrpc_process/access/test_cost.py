"""The maximum cost of a generation."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatrpc.v1 import chat_pb2, completion_pb2
from chatrpc_process.access.cost import COMPLETION_MAX_TOKENS, cost_of, default_output_limit
from chatrpc_process.access.keys import Key
from service.rpc.decode.completion import DEFAULT_MAX_TOKENS


def key(**options: Any) -> Key:
    return Key(name="a", sha256="0" * 64, **options)


def chat(**sampling: Any) -> chat_pb2.ChatCompletionParams:
    return chat_pb2.ChatCompletionParams(sampling=chat_pb2.SamplingParams(**sampling))


def completion(num_prompts: int = 1, **sampling: Any) -> completion_pb2.CompletionParams:
    return completion_pb2.CompletionParams(
        prompts=[completion_pb2.CompletionPrompt(text="x")] * num_prompts,
        sampling=chat_pb2.SamplingParams(**sampling),
    )


def test_each_choice_of_a_chat_counts_as_a_sequence() -> None:
    cost = cost_of(chat(n=96, max_completion_tokens=10), 804)
    assert cost.num_sequences == 96
    assert cost.num_output_tokens == 960
    assert 800 <= cost.num_prompt_tokens <= 900
    assert cost.least_tokens == 960 + 800 // 8


def test_each_choice_of_each_prompt_counts_as_a_sequence() -> None:
    cost = cost_of(completion(5, n=3), 100)
    assert cost.num_sequences == 15
    assert cost.num_output_tokens == 15 * COMPLETION_MAX_TOKENS
    assert cost_of(completion(2, max_completion_tokens=0), 100).num_output_tokens == 0


def test_schemas_and_biases_are_no_part_of_the_prompt() -> None:
    params = chat(max_completion_tokens=1, logit_bias=dict.fromkeys(range(1000), -100.0))
    params.response_format.json_schema.schema_json = "x" * 10_000
    cost = cost_of(params, params.ByteSize())
    assert cost.num_prompt_tokens < 100
    assert cost.least_tokens < 10


def test_completions_have_the_default_of_the_service() -> None:
    assert COMPLETION_MAX_TOKENS == DEFAULT_MAX_TOKENS


@pytest.mark.parametrize(
    ("params", "num_bytes", "sequences_field", "tokens_field"),
    [
        (chat(n=2, max_completion_tokens=100), 80, "sampling.n", "sampling.max_completion_tokens"),
        (chat(max_completion_tokens=100), 8000, "messages", "messages"),
        (completion(2, max_completion_tokens=1), 800, "prompts", "prompts"),
        (completion(2, n=2), 80, "sampling.n", "sampling.max_completion_tokens"),
    ],
)
def test_field_to_lower_is_the_one_that_counts_most(
    params: Any, num_bytes: int, sequences_field: str, tokens_field: str
) -> None:
    cost = cost_of(params, num_bytes)
    assert (cost.sequences_field, cost.tokens_field) == (sequences_field, tokens_field)


def test_counts_that_are_invalid_count_as_one() -> None:
    assert cost_of(chat(n=0), 1).num_sequences == 1
    assert cost_of(completion(0), 1).num_sequences == 1


@pytest.mark.parametrize(
    ("options", "n", "limit"),
    [
        ({"tokens_per_minute": 10**6}, 1, 4096),
        ({"tokens_per_minute": 64_000}, 1, 2000),
        ({"tokens_per_minute": 10_000}, 1, 1024),
        ({"tokens_per_minute": 10**6, "default_max_tokens": 100_000}, 1, 100_000),
        ({"tokens_per_minute": 50}, 1, 50),
        ({"tokens_per_minute": 1000}, 10, 100),
        ({"tokens_per_minute": 5}, 10, 1),
    ],
)
def test_chat_without_a_limit_gets_that_of_its_key(
    options: dict[str, int], n: int, limit: int
) -> None:
    assert default_output_limit(chat(n=n), key(**options)) == limit


@pytest.mark.parametrize(
    ("params", "options"),
    [
        (chat(), {}),
        (chat(), {"requests_per_minute": 1}),
        (completion(), {"tokens_per_minute": 5}),
        (completion(max_completion_tokens=0), {"tokens_per_minute": 5}),
        (chat(max_completion_tokens=77), {"tokens_per_minute": 5}),
    ],
)
def test_other_limits_are_left_as_they_are(params: Any, options: dict[str, int]) -> None:
    assert default_output_limit(params, key(**options)) is None


@given(st.text(max_size=500))
def test_prompt_has_at_most_a_token_for_each_byte(text: str) -> None:
    """The tokenizer has a token for each byte and no others."""
    part = chat_pb2.ContentPart(text=text)
    params = chat_pb2.ChatCompletionParams(messages=[chat_pb2.ChatMessage(content=[part])])
    assert len(text.encode()) <= cost_of(params, params.ByteSize()).num_prompt_tokens
