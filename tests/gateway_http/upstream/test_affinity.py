"""The keys that send calls to the same replica."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from chatrpc.v1 import (
    chat_pb2,
    chat_service_pb2,
    completion_pb2,
    completion_service_pb2,
    model_service_pb2,
)
from gateway_http.upstream import affinity
from gateway_http.upstream.affinity import PrefixAffinity, SessionAffinity

TOKENIZE = model_service_pb2.TokenizeRequest(model="m")


def chat(*texts: str, **fields: Any) -> chat_service_pb2.CreateChatCompletionRequest:
    messages = [
        chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, content=[chat_pb2.ContentPart(text=text)])
        for text in texts
    ]
    params = chat_pb2.ChatCompletionParams(model="m", messages=messages, **fields)
    return chat_service_pb2.CreateChatCompletionRequest(params=params)


def completion(
    *prompts: completion_pb2.CompletionPrompt, **fields: Any
) -> completion_service_pb2.CreateCompletionRequest:
    params = completion_pb2.CompletionParams(model="m", prompts=prompts, **fields)
    return completion_service_pb2.CreateCompletionRequest(params=params)


def text(*prompts: str, **fields: Any) -> completion_service_pb2.CreateCompletionRequest:
    return completion(*(completion_pb2.CompletionPrompt(text=each) for each in prompts), **fields)


def tokens(*ids: int) -> completion_service_pb2.CreateCompletionRequest:
    token_ids = completion_pb2.TokenIds(ids=ids)
    return completion(completion_pb2.CompletionPrompt(token_ids=token_ids))


def session_key(session_id: str, request: Any) -> str | None:
    return SessionAffinity().key(session_id, fields_of(request), request)


def prefix_key(request: Any, num_chars: int = 1024) -> str | None:
    return PrefixAffinity(num_chars).key("", fields_of(request), request)


def fields_of(request: Any) -> affinity.AffinityFields[Any] | None:
    match request:
        case chat_service_pb2.CreateChatCompletionRequest():
            return affinity.CHAT
        case completion_service_pb2.CreateCompletionRequest():
            return affinity.COMPLETION
        case _:
            return None


def test_session_is_the_header_then_the_cache_key_then_the_user() -> None:
    everything = chat("hi", prompt_cache_key="key", user="user")
    assert session_key("s", everything) == session_key("s", chat("other"))
    assert session_key("", everything) == session_key("", chat("other", prompt_cache_key="key"))
    assert session_key("", chat("hi", user="user")) == session_key("", text("hi", user="user"))
    keys = [
        session_key("s", everything),
        session_key("", everything),
        session_key("", chat("hi", user="user")),
    ]
    assert len(set(keys)) == 3


def test_call_without_a_session_or_a_prompt_has_no_key() -> None:
    assert session_key("", chat("hi")) is None
    assert session_key("", chat("hi", user="")) is None
    assert session_key("", TOKENIZE) is None
    assert prefix_key(TOKENIZE) is None


def test_text_beyond_the_prefix_does_not_change_the_key() -> None:
    assert prefix_key(chat("0123456789", "a"), 10) == prefix_key(chat("0123456789", "b"), 10)
    assert prefix_key(text("0123456789a"), 10) == prefix_key(text("0123456789b"), 10)
    assert prefix_key(chat("01", "a"), 10) != prefix_key(chat("01", "b"), 10)
    assert prefix_key(tokens(1, 2, 3, 4, 5, 6), 10) == prefix_key(tokens(1, 2, 3, 4, 5, 7), 10)
    assert prefix_key(tokens(1, 2), 10) != prefix_key(tokens(1, 3), 10)


def test_prompts_that_share_no_cached_prefix_have_different_keys() -> None:
    assert prefix_key(chat("a", cache_salt="1")) != prefix_key(chat("a", cache_salt="2"))
    tool = chat_pb2.Tool(function=chat_pb2.FunctionDefinition(name="f"))
    assert prefix_key(chat("a", tools=[tool])) != prefix_key(chat("a"))


@given(st.text(), st.text())
def test_key_is_short_and_fit_for_metadata(session: str, prompt: str) -> None:
    for key in (session_key(session, TOKENIZE), prefix_key(text(prompt))):
        assert key is None or (len(key) == 32 and key.isalnum() and key.isascii())
