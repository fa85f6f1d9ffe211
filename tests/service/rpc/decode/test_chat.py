"""Chat requests: the decoded values of each field, and the errors of invalid ones."""

from typing import Any

import pytest

from chatrpc.v1 import chat_pb2
from service.domain.backend import ModelSpec
from service.domain.chat import Image, Message, PromptOptions, ToolCall
from service.domain.engine import Caller, FinishReason
from service.domain.sampling import SamplingParams
from service.errors import (
    ContextLengthExceeded,
    InvalidField,
    MissingField,
    UnsupportedField,
)
from service.rpc.decode import chat as decode
from service.rpc.decode.options import priority
from service.rpc.decode.prompt import prompt_options
from service.rpc.decode.sampling import num_choices
from service.rpc.encode.finish import finish_reason
from tests.support.grpc_server import params

DEFAULTS = SamplingParams(temperature=0.2, top_p=0.9)
SPEC = ModelSpec(1000, 128, DEFAULTS, vocab_size=100)


def text(value: str) -> chat_pb2.ContentPart:
    return chat_pb2.ContentPart(text=value)


def user(*parts: chat_pb2.ContentPart) -> chat_pb2.ChatMessage:
    return chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, content=parts)


def limits(max_model_len: int, max_token_chars: int) -> ModelSpec:
    return ModelSpec(max_model_len, 128, DEFAULTS, max_token_chars=max_token_chars)


def rejected(**fields: Any) -> InvalidField:
    with pytest.raises(InvalidField) as caught:
        decode.chat_request(params(**fields), SPEC)
    return caught.value


def test_messages_of_every_role_are_decoded() -> None:
    call = chat_pb2.ToolCall(
        id="c1", function=chat_pb2.FunctionCall(name="f", arguments_json='{"a": 1}')
    )
    protos = [
        chat_pb2.ChatMessage(role=chat_pb2.ROLE_SYSTEM, content=[text("s")]),
        chat_pb2.ChatMessage(role=chat_pb2.ROLE_DEVELOPER, content=[text("d")]),
        chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, content=[text("u"), text("v")], name="bob"),
        chat_pb2.ChatMessage(
            role=chat_pb2.ROLE_ASSISTANT, tool_calls=[call], reasoning_content="hm"
        ),
        chat_pb2.ChatMessage(role=chat_pb2.ROLE_TOOL, content=[text("t")], tool_call_id="c1"),
    ]
    assert decode.messages(protos) == (
        Message("system", "s"),
        Message("developer", "d"),
        Message("user", "uv", name="bob"),
        Message(
            "assistant",
            None,
            tool_calls=(ToolCall("c1", "f", '{"a": 1}'),),
            reasoning_content="hm",
        ),
        Message("tool", "t", tool_call_id="c1"),
    )


def test_images_are_decoded_if_the_model_takes_them() -> None:
    link = chat_pb2.ContentPart(image=chat_pb2.ImageContent(url="https://x/y.png", detail="low"))
    data = chat_pb2.ContentPart(image=chat_pb2.ImageContent(data=b"png", mime_type="image/png"))
    messages = [user(text("a"), link, text("b"), data), user(text("c"), text("d"))]
    seen, plain = decode.messages(messages, takes_images=True)
    assert seen.content == "ab"
    images = Image("https://x/y.png", "low"), Image("data:image/png;base64,cG5n")
    assert seen.parts == ("a", images[0], "b", images[1])
    assert (plain.content, plain.parts) == ("cd", ())


@pytest.mark.parametrize(
    ("part", "field"),
    [
        (chat_pb2.ContentPart(image=chat_pb2.ImageContent()), "messages[0].content[0].image.url"),
        (
            chat_pb2.ContentPart(image=chat_pb2.ImageContent(url="file:///etc/passwd")),
            "messages[0].content[0].image.url",
        ),
        (
            chat_pb2.ContentPart(image=chat_pb2.ImageContent(url="")),
            "messages[0].content[0].image.url",
        ),
        (
            chat_pb2.ContentPart(image=chat_pb2.ImageContent(data=b"x")),
            "messages[0].content[0].image.mime_type",
        ),
        (chat_pb2.ContentPart(audio=chat_pb2.AudioContent(data=b"x")), "messages[0].content[0]"),
    ],
)
def test_invalid_part_is_rejected_if_the_model_takes_images(
    part: chat_pb2.ContentPart, field: str
) -> None:
    with pytest.raises(InvalidField) as caught:
        decode.messages([user(part)], takes_images=True)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("message", "kind", "field"),
    [
        (chat_pb2.ChatMessage(content=[text("x")]), MissingField, "role"),
        (chat_pb2.ChatMessage(role=99, content=[text("x")]), InvalidField, "role"),  # type: ignore[arg-type]
        (user(), MissingField, "content"),
        (chat_pb2.ChatMessage(role=chat_pb2.ROLE_ASSISTANT), MissingField, "content"),
        (user(chat_pb2.ContentPart()), MissingField, "content[0]"),
        (
            user(text("x"), chat_pb2.ContentPart(image=chat_pb2.ImageContent(url="u"))),
            UnsupportedField,
            "content[1]",
        ),
        (
            chat_pb2.ChatMessage(role=chat_pb2.ROLE_TOOL, content=[text("x")]),
            MissingField,
            "tool_call_id",
        ),
        (
            chat_pb2.ChatMessage(
                role=chat_pb2.ROLE_USER, content=[text("x")], tool_calls=[chat_pb2.ToolCall()]
            ),
            InvalidField,
            "tool_calls",
        ),
        (
            chat_pb2.ChatMessage(role=chat_pb2.ROLE_ASSISTANT, tool_calls=[chat_pb2.ToolCall()]),
            MissingField,
            "tool_calls[0].function.name",
        ),
    ],
)
def test_invalid_message_is_rejected_with_its_field(
    message: chat_pb2.ChatMessage, kind: type[InvalidField], field: str
) -> None:
    error = rejected(messages=[user(text("fine")), message])
    assert type(error) is kind
    assert error.field == f"messages[1].{field}"


def test_refusal_in_the_history_is_part_of_the_content() -> None:
    refusal = chat_pb2.ChatMessage(role=chat_pb2.ROLE_ASSISTANT, refusal="no")
    both = chat_pb2.ChatMessage(role=chat_pb2.ROLE_ASSISTANT, content=[text("a")], refusal="no")
    assert [m.content for m in decode.messages([refusal, both])] == ["no", "a\nno"]


@pytest.mark.parametrize(
    "message",
    [
        user(text("x" * 500), text("x" * 500)),
        chat_pb2.ChatMessage(refusal="x" * 1000),
        chat_pb2.ChatMessage(reasoning_content="x" * 1000),
        chat_pb2.ChatMessage(
            tool_calls=[
                chat_pb2.ToolCall(function=chat_pb2.FunctionCall(arguments_json="x" * 1000))
            ]
        ),
    ],
)
def test_message_that_cannot_fit_is_rejected_by_its_size(message: chat_pb2.ChatMessage) -> None:
    decode.check_fits([message], limits(101, 10))
    with pytest.raises(ContextLengthExceeded) as caught:
        decode.check_fits([message], limits(100, 10))
    assert caught.value.prompt_tokens == 100


def test_more_messages_than_tokens_are_rejected() -> None:
    with pytest.raises(ContextLengthExceeded):
        decode.check_fits([user()] * 100, limits(100, 10))


def test_template_arguments_and_cache_salt_are_bounded() -> None:
    kwargs = '{"a": "' + "x" * 65_536 + '"}'
    prompt = chat_pb2.PromptOptions(chat_template_kwargs_json=kwargs)
    assert rejected(prompt=prompt).field == "prompt.chat_template_kwargs_json"
    assert rejected(cache_salt="x" * 513).field == "cache_salt"


def test_request_without_messages_is_rejected() -> None:
    assert rejected(messages=[]).field == "messages"


def test_template_arguments_that_are_no_json_object_are_rejected() -> None:
    for bad in ("[1]", "{", '{"a b": 1}', "[" * 100_000):
        error = rejected(prompt=chat_pb2.PromptOptions(chat_template_kwargs_json=bad))
        assert error.field == "prompt.chat_template_kwargs_json"


def test_reasoning_effort_is_passed_to_the_template() -> None:
    prompt = chat_pb2.PromptOptions(chat_template_kwargs_json='{"a": 1}')
    high = prompt_options(prompt, chat_pb2.REASONING_EFFORT_HIGH)
    assert high.template_kwargs == {"reasoning_effort": "high", "a": 1}
    none = prompt_options(chat_pb2.PromptOptions(), chat_pb2.REASONING_EFFORT_NONE)
    assert none.template_kwargs == {"enable_thinking": False}
    assert rejected(reasoning_effort=77).field == "reasoning_effort"


def test_generation_prompt_is_added_by_default() -> None:
    effort = chat_pb2.REASONING_EFFORT_UNSPECIFIED
    assert prompt_options(chat_pb2.PromptOptions(), effort).add_generation_prompt
    without = chat_pb2.PromptOptions(add_generation_prompt=False)
    assert not prompt_options(without, effort).add_generation_prompt


@pytest.mark.parametrize("reason", FinishReason)
def test_every_finish_reason_has_a_value_in_the_proto(reason: FinishReason) -> None:
    name = chat_pb2.FinishReason.Name(finish_reason(reason))
    assert name == f"FINISH_REASON_{reason.name}"


def test_number_of_logprobs_is_decoded_from_two_fields() -> None:
    def num_logprobs(**fields: Any) -> int | None:
        return decode.chat_request(params(**fields), SPEC).num_logprobs

    assert num_logprobs() is None
    assert num_logprobs(logprobs=False) is None
    assert num_logprobs(logprobs=True) == 0
    assert num_logprobs(logprobs=True, top_logprobs=20) == 20
    assert rejected(top_logprobs=0).field == "top_logprobs"
    assert rejected(logprobs=True, top_logprobs=21).field == "top_logprobs"
    assert rejected(prompt_logprobs=21).field == "prompt_logprobs"


def test_number_of_choices_and_returned_details_are_decoded() -> None:
    chat = decode.chat_request(
        params(
            sampling=chat_pb2.SamplingParams(n=3),
            prompt_logprobs=0,
            return_token_ids=True,
        ),
        SPEC,
    )
    assert (chat.n, chat.num_prompt_logprobs) == (3, 0)
    assert chat.returns_token_ids


def test_continued_message_excludes_the_generation_prompt() -> None:
    def options(**fields: Any) -> PromptOptions:
        proto = chat_pb2.PromptOptions(**fields)
        return prompt_options(proto, chat_pb2.REASONING_EFFORT_UNSPECIFIED)

    assert options(continue_final_message=True) == PromptOptions(
        add_generation_prompt=False, continue_final_message=True
    )
    assert options(truncate_prompt_tokens=5).truncate_prompt_tokens == 5
    with pytest.raises(InvalidField, match="cannot be used with add_generation_prompt"):
        options(continue_final_message=True, add_generation_prompt=True)
    with pytest.raises(InvalidField, match="at least 1"):
        options(truncate_prompt_tokens=0)


@pytest.mark.parametrize(("n", "max_n"), [(0, 128), (129, 200), (5, 4)])
def test_number_of_choices_out_of_range_is_rejected(n: int, max_n: int) -> None:
    with pytest.raises(InvalidField, match="n must be between 1 and") as caught:
        num_choices(chat_pb2.SamplingParams(n=n), max_n)
    assert caught.value.field == "sampling.n"


def test_priority_below_that_of_the_key_is_rejected() -> None:
    low, limited = -(2**31), Caller("a", min_priority=3)
    assert priority(params(priority=low), Caller()) == low
    assert priority(params(priority=3), limited) == 3
    with pytest.raises(InvalidField, match="may not set a priority below 3") as caught:
        priority(params(priority=2), limited)
    assert caught.value.field == "priority"


def test_absent_priority_is_zero_or_the_minimum_of_the_key() -> None:
    assert priority(params(), Caller("a", min_priority=-5)) == 0
    assert priority(params(), Caller("a", min_priority=3)) == 3


def test_assistant_message_with_reasoning_only_is_accepted() -> None:
    """A response that is cut off during its reasoning has no content, and clients resend it."""
    proto = chat_pb2.ChatMessage(role=chat_pb2.ROLE_ASSISTANT, reasoning_content="hm")
    assert decode.messages([proto]) == (Message("assistant", None, reasoning_content="hm"),)


@pytest.mark.parametrize("name", ["content", "tool_calls"])
def test_message_with_more_parts_than_the_context_has_tokens_is_rejected(name: str) -> None:
    kinds: dict[str, Any] = {"content": chat_pb2.ContentPart(), "tool_calls": chat_pb2.ToolCall()}
    fields: dict[str, Any] = {name: [kinds[name]] * 101}
    protos = [user(text("hi")), chat_pb2.ChatMessage(**fields)]
    with pytest.raises(InvalidField, match="at most as many parts and calls") as caught:
        decode.check_fits(protos, limits(100, 9))
    assert caught.value.field == f"messages[1].{name}"


@pytest.mark.parametrize(("depth", "is_valid"), [(32, True), (33, False), (900, False)])
def test_template_arguments_nested_too_deeply_are_rejected(depth: int, is_valid: bool) -> None:
    """The object itself counts as one level."""
    text = '{"a":' + "[" * (depth - 1) + "]" * (depth - 1) + "}"
    options = chat_pb2.PromptOptions(chat_template_kwargs_json=text)
    if is_valid:
        prompt_options(options, chat_pb2.REASONING_EFFORT_UNSPECIFIED)
        return
    with pytest.raises(InvalidField) as caught:
        prompt_options(options, chat_pb2.REASONING_EFFORT_UNSPECIFIED)
    assert caught.value.field == "prompt.chat_template_kwargs_json"


def test_size_of_tool_schemas_is_checked_before_they_are_parsed() -> None:
    function = chat_pb2.FunctionDefinition(name="f", parameters_json_schema=" " * 1000)
    with pytest.raises(ContextLengthExceeded):
        decode.check_fits([user()], limits(100, 10), [chat_pb2.Tool(function=function)])


@pytest.mark.parametrize(
    "fields",
    [
        {"content": [""]},
        {"content": ["a"]},
        {"content": [""], "reasoning": "r"},
        {"content": ["a"], "reasoning": "r"},
        {"content": [], "calls": True},
        {"content": ["a"], "calls": True},
        {"content": [], "calls": True, "reasoning": "r"},
    ],
)
def test_returned_message_is_accepted_in_the_next_request(fields: dict[str, Any]) -> None:
    """The messages are those that `service.rpc.encode.chat` returns."""
    call = chat_pb2.ToolCall(
        id="call_1", function=chat_pb2.FunctionCall(name="f", arguments_json="{}")
    )
    proto = chat_pb2.ChatMessage(
        role=chat_pb2.ROLE_ASSISTANT,
        content=[chat_pb2.ContentPart(text=text) for text in fields["content"]],
        reasoning_content=fields.get("reasoning", ""),
        tool_calls=[call] if "calls" in fields else [],
    )
    (message,) = decode.messages([proto])
    assert message.content == ("".join(fields["content"]) if fields["content"] else None)
    assert message.reasoning_content == fields.get("reasoning")
    assert len(message.tool_calls) == len(proto.tool_calls)
