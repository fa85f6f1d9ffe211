"""A null is the same as an absent field, wherever a field may be absent."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from gateway_http.convert import completions, requests, tokens
from gateway_http.protocol.completion import CompletionRequest
from gateway_http.protocol.decode import decoder
from gateway_http.protocol.request import ChatCompletionRequest
from gateway_http.protocol.tokens import TokenizeRequest
from tests.gateway_http.sample_bodies import CHAT, CONVERSATION, HI, TEXT


def tokenize(body: TokenizeRequest) -> Message:
    return tokens.tokenize_request(body)


Kind = tuple[type[Any], dict[str, Any], dict[str, Any], Callable[[Any], Message]]
KINDS: dict[str, Kind] = {
    "chat": (
        ChatCompletionRequest,
        {"model": "m", "messages": CONVERSATION},
        # A request may have only one response format.
        {name: value for name, value in CHAT.items() if name != "structured_outputs"},
        requests.params,
    ),
    "text": (
        CompletionRequest,
        {"model": "m", "prompt": "x"},
        {name: value for name, value in TEXT.items() if name != "structured_outputs"},
        completions.params,
    ),
    "tokenize": (TokenizeRequest, {"messages": [HI]}, {"return_token_strs": True}, tokenize),
}


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_null_is_absent(kind: str, data: st.DataObject) -> None:
    """Any set of fields may be given, and any of the others may be null."""
    struct, required, optional, convert = KINDS[kind]
    names = data.draw(st.sets(st.sampled_from(sorted(optional))))
    rest = sorted(set(struct.__struct_fields__) - names - required.keys())
    nulls = data.draw(st.sets(st.sampled_from(rest)))
    body = required | {name: optional[name] for name in names}
    decode = decoder(struct)

    def converted(fields: dict[str, Any]) -> Message:
        return convert(decode(json.dumps(fields).encode()))

    assert converted(body | dict.fromkeys(nulls)) == converted(body)


@pytest.mark.parametrize("kind", KINDS)
def test_each_optional_field_may_be_null(kind: str) -> None:
    struct, required, _, convert = KINDS[kind]
    decode = decoder(struct)
    plain = convert(decode(json.dumps(required).encode()))
    for name in sorted(set(struct.__struct_fields__) - required.keys()):
        assert convert(decode(json.dumps(required | {name: None}).encode())) == plain, name


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None, "tool_calls": None, "refusal": None, "name": None},
        {"role": "user", "content": "x", "tool_call_id": None, "reasoning_content": None},
        {
            "role": "user",
            "content": [{"type": "text", "text": "x", "prompt_cache_breakpoint": None}],
        },
    ],
)
def test_so_it_is_within_messages(message: dict[str, Any]) -> None:
    def converted(sent: dict[str, Any]) -> Message:
        body = {"model": "m", "messages": [HI, sent]}
        return requests.params(decoder(ChatCompletionRequest)(json.dumps(body).encode()))

    assert converted(message) == converted({key: v for key, v in message.items() if v is not None})
