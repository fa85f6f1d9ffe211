"""The bodies of requests to upstreams: each option under its name, and nothing else."""

import json
from typing import Any

import pytest

from service.domain.backend import GenerationRequest
from service.domain.chat import (
    Image,
    Message,
    PromptOptions,
    ResponseFormat,
    ResponseFormatKind,
    Tool,
    ToolCall,
    ToolMode,
)
from service.domain.engine import Caller
from service.errors import InvalidField, UnsupportedField
from service.upstream.dialects import Dialect, Names
from service.upstream.requests import upstream_request
from tests.service.upstream.serving import call, chat, completion, sampling

D = Dialect


def body(request: GenerationRequest, dialect: Dialect = D.VLLM, **context: Any) -> dict[str, Any]:
    """Return the body without what every streamed request has."""
    sent = upstream_request(request, call(**context), "remote", Names(dialect))
    found: dict[str, Any] = json.loads(sent.body)
    assert found.pop("model") == "remote"
    assert found.pop("stream", False) == sent.is_streamed == ("stream_options" in found)
    found.pop("stream_options", None)
    found.pop("messages", None)
    return found


def messages(*given: Message, dialect: Dialect = D.VLLM) -> Any:
    sent = upstream_request(chat(messages=given), call(), "remote", Names(dialect))
    return json.loads(sent.body)["messages"]


def rejected(request: GenerationRequest, dialect: Dialect, **context: Any) -> str:
    """Return the field of the error."""
    with pytest.raises(InvalidField) as caught:
        body(request, dialect, **context)
    return caught.value.field


@pytest.mark.parametrize("dialect", list(Dialect))
def test_absent_options_are_not_sent(dialect: Dialect) -> None:
    assert body(chat(), dialect) == {}
    assert body(completion("Say"), dialect) == {"prompt": "Say"}


@pytest.mark.parametrize(
    ("dialect", "expected"),
    [
        (D.OPENAI, {"temperature": 0.5, "max_completion_tokens": 9, "stop": ["x"]}),
        (D.OLLAMA, {"temperature": 0.5, "max_tokens": 9, "stop": ["x"]}),
    ],
)
def test_given_sampling_options_are_sent(dialect: Dialect, expected: dict[str, Any]) -> None:
    given = sampling(temperature=0.5, max_tokens=9, stop=("x",))
    assert body(chat(sampling=given), dialect) == expected


def test_every_sampling_option_is_sent_to_vllm() -> None:
    given = sampling(
        top_k=0,
        min_p=0.1,
        repetition_penalty=1.1,
        logit_bias={5: -100.0},
        min_tokens=2,
        allowed_token_ids=frozenset({3, 1}),
        bad_words=("no",),
        stop_token_ids=frozenset({9, 8}),
        ignore_eos=True,
        include_stop_str_in_output=True,
        skip_special_tokens=False,
        seed=-1,
    )
    assert body(chat(sampling=given)) == {
        "top_k": 0,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "logit_bias": {"5": -100.0},
        "min_tokens": 2,
        "allowed_token_ids": [1, 3],
        "bad_words": ["no"],
        "stop_token_ids": [8, 9],
        "ignore_eos": True,
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "seed": -1,
    }


def test_names_and_values_of_a_dialect_are_used() -> None:
    given = sampling(top_k=0, include_stop_str_in_output=True)
    assert body(chat(sampling=given), D.SGLANG) == {"top_k": -1, "no_stop_trim": True}
    given = sampling(repetition_penalty=1.5)
    expected = {"repeat_penalty": 1.5, "repeat_last_n": -1}
    assert body(chat(sampling=given), D.LLAMACPP) == expected


def test_option_without_a_name_is_rejected_unless_it_has_no_effect() -> None:
    assert rejected(chat(sampling=sampling(top_k=5)), D.OPENAI) == "sampling.top_k"
    assert body(chat(sampling=sampling(top_k=0, ignore_eos=False)), D.OPENAI) == {}


def test_messages_of_every_role_are_sent() -> None:
    given = (
        Message("system", "s"),
        Message("user", "u", name="bob"),
        Message("assistant", None, tool_calls=(ToolCall("c1", "f", '{"a":1}'),)),
        Message("tool", "t", tool_call_id="c1"),
        Message("assistant", "a", reasoning_content="hm"),
    )
    function = {"name": "f", "arguments": '{"a":1}'}
    expected: list[dict[str, Any]] = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u", "name": "bob"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": function}],
        },
        {"role": "tool", "content": "t", "tool_call_id": "c1"},
        {"role": "assistant", "content": "a", "reasoning_content": "hm"},
    ]
    assert messages(*given) == expected
    # OpenAI's own API has no reasoning in messages.
    del expected[-1]["reasoning_content"]
    assert messages(*given, dialect=D.OPENAI) == expected


def test_images_are_sent_in_their_order() -> None:
    parts = ("a", Image("https://x/y.png", "low"), Image("data:image/png;base64,AA=="))
    [message] = messages(Message("user", "a", parts=parts))
    assert message["content"] == [
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
    ]


SCHEMA = '{"type":"object","properties":{"n":{"const":12345678901234567890123}}}'
TOOLS = (Tool("f", "does f", SCHEMA, is_strict=True), Tool("g", "", ""))


def test_tools_are_sent_with_the_digits_of_their_schemas() -> None:
    request = chat(tools=TOOLS, has_parallel_calls=False)
    sent = upstream_request(request, call(), "remote", Names(D.OPENAI)).body
    assert b"12345678901234567890123" in sent
    assert body(request, D.OPENAI) == {
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "f",
                    "description": "does f",
                    "parameters": json.loads(SCHEMA),
                    "strict": True,
                },
            },
            {"type": "function", "function": {"name": "g"}},
        ],
        "parallel_tool_calls": False,
    }


@pytest.mark.parametrize(
    ("mode", "dialect", "expected"),
    [
        (ToolMode.AUTO, D.OPENAI, None),
        (ToolMode.REQUIRED, D.VLLM, "required"),
        (ToolMode.NAMED, D.VLLM, {"type": "function", "function": {"name": "g"}}),
        (ToolMode.NAMED, D.LLAMACPP, "required"),  # it reads no object
    ],
)
def test_tool_choice_is_sent(mode: ToolMode, dialect: Dialect, expected: Any) -> None:
    request = chat(tools=TOOLS[1:], tool_mode=mode)
    assert body(request, dialect).get("tool_choice") == expected


def test_invalid_schema_is_rejected_with_its_field() -> None:
    tool = Tool("f", "", "{", schema_field="tools[0].function.parameters_json_schema")
    assert rejected(chat(tools=(tool,)), D.OPENAI) == tool.schema_field


KIND = ResponseFormatKind


def formatted(kind: ResponseFormatKind, text: str = "", **fields: Any) -> ResponseFormat:
    return ResponseFormat(kind, text, field=f"response_format.{kind.value}", **fields)


@pytest.mark.parametrize(
    ("response_format", "dialect", "expected"),
    [
        (formatted(KIND.JSON_OBJECT), D.OPENAI, {"response_format": {"type": "json_object"}}),
        (
            formatted(KIND.JSON_SCHEMA, '{"type":"null"}', is_strict=True, name="x"),
            D.OPENAI,
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"type": "null"}, "strict": True},
                }
            },
        ),
        (formatted(KIND.REGEX, "a+"), D.VLLM, {"structured_outputs": {"regex": "a+"}}),
        (formatted(KIND.REGEX, "a+"), D.SGLANG, {"regex": "a+"}),
        (formatted(KIND.GRAMMAR, "g"), D.LLAMACPP, {"grammar": "g"}),
        (
            formatted(KIND.CHOICE, choices=("a", "b")),
            D.VLLM,
            {"structured_outputs": {"choice": ["a", "b"]}},
        ),
    ],
)
def test_response_format_is_sent(
    response_format: ResponseFormat, dialect: Dialect, expected: dict[str, Any]
) -> None:
    assert body(chat(response_format=response_format), dialect) == expected


def test_text_completion_of_llamacpp_has_a_schema_of_another_name() -> None:
    request = completion("Say", response_format=formatted(KIND.JSON_OBJECT))
    assert body(request, D.LLAMACPP) == {"prompt": "Say", "json_schema": {"type": "object"}}


def test_reasoning_effort_is_sent_once() -> None:
    high = PromptOptions({"reasoning_effort": "high", "x": 1}, reasoning_effort="high")
    expected = {"reasoning_effort": "high", "chat_template_kwargs": {"x": 1}}
    assert body(chat(prompt=high)) == expected
    none = PromptOptions({"enable_thinking": False}, reasoning_effort="none")
    assert body(chat(prompt=none), D.OPENAI) == {"reasoning_effort": "none"}


def test_prompt_options_are_sent() -> None:
    options = PromptOptions(
        add_generation_prompt=False, continue_final_message=True, truncate_prompt_tokens=5
    )
    assert body(chat(prompt=options)) == {
        "continue_final_message": True,
        "add_generation_prompt": False,
        "truncate_prompt_tokens": 5,
        "truncation_side": "left",
    }
    options = PromptOptions(add_generation_prompt=False, continue_final_message=True)
    assert body(chat(prompt=options), D.SGLANG) == {"continue_final_message": True}


def test_logprobs_are_requested() -> None:
    assert body(chat(num_logprobs=0), D.OPENAI) == {"logprobs": True, "top_logprobs": 0}
    # With 0, these return none at all.
    assert body(chat(num_logprobs=0), D.LLAMACPP)["top_logprobs"] == 1
    assert body(completion("a", num_logprobs=2))["logprobs"] == 2


def test_prompt_logprobs_are_requested_without_a_stream() -> None:
    sent = upstream_request(chat(num_prompt_logprobs=1), call(), "remote", Names(D.VLLM))
    assert not sent.is_streamed
    expected = {"prompt_logprobs": 1, "return_token_ids": True}
    assert body(chat(num_prompt_logprobs=1)) == expected


def test_prompts_are_sent_as_texts_or_token_ids() -> None:
    assert body(completion("a", "b")) == {"prompt": ["a", "b"]}
    assert body(completion((1, 2))) == {"prompt": [1, 2]}
    assert body(completion((1, 2), (3,))) == {"prompt": [[1, 2], [3]]}
    assert rejected(completion((1,)), D.OLLAMA) == "prompts[0]"


def test_echo_is_sent_only_if_the_upstream_has_to_return_the_prompt() -> None:
    assert body(completion("a", is_echoed=True)) == {"prompt": "a"}
    scored = completion("a", is_echoed=True, num_logprobs=1, num_prompt_logprobs=1)
    assert body(scored) == {"prompt": "a", "echo": True, "logprobs": 1}
    assert body(completion((1,), is_echoed=True)) == {"prompt": [1], "echo": True}


def test_text_completion_options_are_sent() -> None:
    request = completion(
        "a",
        n=2,
        sampling=sampling(max_tokens=16),
        adds_special_tokens=False,
        truncate_prompt_tokens=7,
        returns_token_ids=True,
    )
    assert body(request) == {
        "prompt": "a",
        "n": 2,
        "max_tokens": 16,
        "add_special_tokens": False,
        "truncate_prompt_tokens": 7,
        "truncation_side": "left",
        "return_token_ids": True,
    }


def test_priority_is_sent_if_the_request_sets_it() -> None:
    assert body(chat(), priority=-3) == {"priority": -3}
    caller = Caller("a", min_priority=5)
    assert body(chat(), priority=5, caller=caller) == {}
    assert rejected(chat(), D.OPENAI, priority=1) == "priority"


def test_cache_salt_separates_callers() -> None:
    def salt(text: str, namespace: str) -> str:
        caller = Caller("a", cache_namespace=namespace)
        return str(body(chat(cache_salt=text), caller=caller)["cache_salt"])

    salts = {salt("a@/", ""), salt("", "x"), salt("a@/", "x"), salt("a@/", "y")}
    assert len(salts) == 4
    assert all(len(each) == 64 for each in salts)
    caller = Caller("a", cache_namespace="x")
    assert body(chat(), D.OPENAI, caller=caller) == {}
    with pytest.raises(UnsupportedField, match="cache_salt"):
        body(chat(cache_salt="s"), D.OPENAI)


@pytest.mark.parametrize(
    ("request_", "dialect", "is_continuous"),
    [
        (chat(), D.VLLM, True),
        (chat(), D.OPENAI, False),
        (chat(n=2), D.VLLM, False),
        (completion("a", "b"), D.SGLANG, False),
    ],
)
def test_usage_is_requested(
    request_: GenerationRequest, dialect: Dialect, is_continuous: bool
) -> None:
    sent = json.loads(upstream_request(request_, call(), "remote", Names(dialect)).body)
    expected = {"include_usage": True}
    if is_continuous:
        expected["continuous_usage_stats"] = True
    assert sent["stream_options"] == expected
