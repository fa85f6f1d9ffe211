"""The conversations of Anthropic's Messages API as messages of the proto."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatrpc.v1 import chat_pb2
from gateway_http.convert.anthropic_prompt import (
    chat_messages,
    continues_last,
    grouped,
    sent_names,
    tools,
)
from gateway_http.protocol.anthropic import CountTokensRequest
from gateway_http.protocol.error import InvalidRequest
from gateway_http.protocol.params import param_of

TEXT = {"type": "text", "text": "Hi"}
CALL = {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}}
RESULT = {"type": "tool_result", "tool_use_id": "c1", "content": "1"}
THINKING = {"type": "thinking", "thinking": "Hmm", "signature": ""}
IMAGE = {"type": "image", "source": {"type": "url", "url": "http://a/b.png"}}


def prompt(*messages: tuple[str, Any], **fields: Any) -> CountTokensRequest:
    listed = [{"role": role, "content": content} for role, content in messages]
    body = msgspec.json.encode({"model": "m", "messages": listed, **fields})
    return msgspec.json.decode(body, type=CountTokensRequest)


def of(text: str) -> list[chat_pb2.ContentPart]:
    return [chat_pb2.ContentPart(text=text)]


def test_tool_results_become_messages_in_their_order() -> None:
    second = RESULT | {"tool_use_id": "c2"}
    messages = chat_messages(prompt(("user", [RESULT, TEXT, second, TEXT])))
    roles = [message.role for message in messages]
    tool, user = chat_pb2.ROLE_TOOL, chat_pb2.ROLE_USER
    assert roles == [tool, user, tool, user]
    assert [message.tool_call_id for message in messages] == ["c1", "", "c2", ""]


def test_failed_tool_result_begins_with_error() -> None:
    [message] = chat_messages(prompt(("user", [RESULT | {"is_error": True}])))
    assert "".join(part.text for part in message.content) == "Error: 1"


def test_system_prompt_comes_first() -> None:
    for system in ("Be brief.", [{"type": "text", "text": "Be brief."}]):
        first = chat_messages(prompt(("user", "Hi"), system=system))[0]
        assert first.role == chat_pb2.ROLE_SYSTEM
        assert [*first.content] == of("Be brief.")


def test_assistant_message_has_reasoning_text_and_calls() -> None:
    [message] = chat_messages(prompt(("assistant", [THINKING, TEXT, CALL])))
    assert message.reasoning_content == "Hmm"
    assert [*message.content] == of("Hi")
    assert message.tool_calls[0].function.arguments_json == '{"a":1}'


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (IMAGE, chat_pb2.ContentPart(image=chat_pb2.ImageContent(url="http://a/b.png"))),
        (
            {
                "type": "image",
                "source": {"type": "base64", "data": "QUI=", "media_type": "image/png"},
            },
            chat_pb2.ContentPart(image=chat_pb2.ImageContent(data=b"AB", mime_type="image/png")),
        ),
        (
            {
                "type": "document",
                "title": "T",
                "context": "C",
                "source": {"type": "text", "data": "D", "media_type": "text/plain"},
            },
            of("T\nC\nD")[0],
        ),
        (
            {
                "type": "document",
                "title": "T",
                "source": {"type": "base64", "data": "QUI=", "media_type": "application/pdf"},
            },
            chat_pb2.ContentPart(file=chat_pb2.FileContent(data=b"AB", filename="T")),
        ),
        (
            {"type": "search_result", "source": "S", "title": "T", "content": [TEXT]},
            of("T\nS\nHi")[0],
        ),
    ],
)
def test_block_becomes_a_part(block: dict[str, Any], expected: chat_pb2.ContentPart) -> None:
    [message] = chat_messages(prompt(("user", [block])))
    assert [*message.content] == [expected]
    [result] = chat_messages(prompt(("user", [RESULT | {"content": [block]}])))
    assert [*result.content] == [expected]


@pytest.mark.parametrize(
    ("role", "block", "param"),
    [
        ("user", CALL, "messages[0].content[0]"),
        ("user", THINKING, "messages[0].content[0]"),
        ("assistant", RESULT, "messages[0].content[0]"),
        ("assistant", IMAGE, "messages[0].content[0]"),
        ("system", IMAGE, "messages[0].content[0]"),
        (
            "user",
            {"type": "search_result", "source": "S", "title": "T", "content": [TEXT]}
            | {"citations": {"enabled": True}},
            "messages[0].content[0].citations",
        ),
    ],
)
def test_block_of_another_role_is_rejected(role: str, block: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat_messages(prompt((role, [block])))
    assert caught.value.body.error.param == param


def test_tool_of_a_server_is_rejected() -> None:
    server_tool = {"type": "web_search_20260209", "name": "web_search"}
    with pytest.raises(InvalidRequest) as caught:
        tools(prompt(("user", "Hi"), tools=[{"name": "f", "input_schema": {}}, server_tool]))
    assert caught.value.body.error.param == "tools[1].type"


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([("user", "Hi")], False),
        ([("user", "Hi"), ("assistant", "Well")], True),
        ([("user", "Hi"), ("assistant", [TEXT])], True),
        ([("user", "Hi"), ("assistant", [TEXT, CALL])], False),
    ],
)
def test_last_message_of_the_assistant_is_continued(
    messages: list[tuple[str, Any]], expected: bool
) -> None:
    assert continues_last(prompt(*messages)) is expected


_USER_BLOCKS = st.lists(st.sampled_from([TEXT, IMAGE, RESULT]), min_size=1, max_size=5)
_ASSISTANT_BLOCKS = st.lists(st.sampled_from([TEXT, CALL, THINKING]), min_size=1, max_size=5)
_MESSAGES = st.lists(
    st.tuples(st.just("user"), _USER_BLOCKS | st.just("Hi"))
    | st.tuples(st.just("assistant"), _ASSISTANT_BLOCKS | st.just("Hi")),
    min_size=1,
    max_size=5,
)


@given(_MESSAGES, st.sampled_from([None, "S", [TEXT, TEXT]]))
def test_every_part_has_the_path_of_its_block(messages: list[tuple[str, Any]], system: Any) -> None:
    request = prompt(*messages, system=system)
    names = sent_names(request)
    for i, (group, message) in enumerate(
        zip(grouped(request), chat_messages(request), strict=True)
    ):
        paths = [placed.path for placed in group.blocks]
        assert param_of(f"messages[{i}]", names) == group.path
        if message.role == chat_pb2.ROLE_TOOL:
            assert param_of(f"messages[{i}].tool_call_id", names) == f"{paths[0]}.tool_use_id"
            continue
        parts = [p.path for p in group.blocks if p.block.__struct_config__.tag in {"text", "image"}]
        assert len(parts) == len(message.content)
        for j, path in enumerate(parts):
            assert param_of(f"messages[{i}].content[{j}]", names) == path
        calls = [p.path for p in group.blocks if p.block.__struct_config__.tag == "tool_use"]
        for j, path in enumerate(calls):
            field = f"messages[{i}].tool_calls[{j}].function.arguments_json"
            assert param_of(field, names) == f"{path}.input"
