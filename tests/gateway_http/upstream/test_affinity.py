"""What calls have in common that belong together."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from chatrpc.v1 import chat_pb2, completion_pb2, model_service_pb2
from gateway_http.upstream.affinity import Prefix, Session


def chat(*texts: str, **fields: Any) -> chat_pb2.ChatCompletionParams:
    messages = [
        chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, content=[chat_pb2.ContentPart(text=text)])
        for text in texts
    ]
    return chat_pb2.ChatCompletionParams(model="m", messages=messages, **fields)


def text(*prompts: str, **fields: Any) -> completion_pb2.CompletionParams:
    asked = [completion_pb2.CompletionPrompt(text=prompt) for prompt in prompts]
    return completion_pb2.CompletionParams(model="m", prompts=asked, **fields)


def tokens(*ids: int) -> completion_pb2.CompletionParams:
    prompt = completion_pb2.CompletionPrompt(token_ids=completion_pb2.TokenIds(ids=ids))
    return completion_pb2.CompletionParams(model="m", prompts=[prompt])


def test_a_session_is_named_by_the_first_of_three() -> None:
    of = Session().of
    everything = chat("hi", prompt_cache_key="key", user="user")
    assert of({"x-session-id": "s"}, everything) == of({"x-session-id": "s"}, chat("other"))
    assert of({}, everything) == of({}, chat("other", prompt_cache_key="key"))
    assert of({}, chat("hi", user="user")) == of({}, text("hi", user="user"))
    keys = [
        of({"x-session-id": "s"}, everything),
        of({}, everything),
        of({}, chat("hi", user="user")),
    ]
    assert len(set(keys)) == 3


def test_calls_without_a_session_belong_nowhere() -> None:
    assert Session().of({}, chat("hi")) is None
    assert Session().of({"x-session-id": ""}, chat("hi", user="")) is None
    assert Session().of({}, model_service_pb2.TokenizeRequest(model="m")) is None
    assert Prefix().of({}, model_service_pb2.TokenizeRequest(model="m")) is None
    assert Prefix().of({}, None) is None


def test_what_is_beyond_the_prefix_does_not_count() -> None:
    of = Prefix(10).of
    assert of({}, chat("0123456789", "a")) == of({}, chat("0123456789", "b"))
    assert of({}, text("0123456789a")) == of({}, text("0123456789b"))
    assert of({}, chat("01", "a")) != of({}, chat("01", "b"))
    assert of({}, tokens(1, 2, 3, 4, 5, 6)) == of({}, tokens(1, 2, 3, 4, 5, 7))
    assert of({}, tokens(1, 2)) != of({}, tokens(1, 3))


def test_what_shares_no_cache_shares_no_prefix() -> None:
    assert Prefix().of({}, chat("a", cache_salt="1")) != Prefix().of({}, chat("a", cache_salt="2"))
    tool = chat_pb2.Tool(function=chat_pb2.FunctionDefinition(name="f"))
    assert Prefix().of({}, chat("a", tools=[tool])) != Prefix().of({}, chat("a"))


@given(st.text(), st.text())
def test_a_key_is_short_and_fit_for_metadata(session: str, prompt: str) -> None:
    for key in (Session().of({"x-session-id": session}, None), Prefix().of({}, text(prompt))):
        assert key is None or (len(key) == 32 and key.isalnum() and key.isascii())
