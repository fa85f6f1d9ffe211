"""Conversion of chat completions. Strict clients check which keys are null and which are absent."""

from typing import Any

import msgspec
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from chatrpc.v1 import chat_pb2
from gateway_http.convert import chat_completions
from gateway_http.protocol.request import ChatCompletionRequest, Reasoning

REQUEST = ChatCompletionRequest(model="m", messages=[])


def as_json(struct: msgspec.Struct) -> Any:
    return msgspec.json.decode(msgspec.json.encode(struct))


def completion(request: ChatCompletionRequest = REQUEST, **choice: Any) -> Any:
    answer = chat_pb2.ChatCompletion(
        id="chatcmpl-1",
        create_time=Timestamp(seconds=5),
        model="m",
        choices=[
            chat_pb2.Choice(**{"finish_reason": chat_pb2.FINISH_REASON_STOP, **choice}),
        ],
        usage=chat_pb2.Usage(prompt_tokens=3, completion_tokens=4, cached_prompt_tokens=2),
    )
    return as_json(chat_completions.completion(answer, "m", request))


def message_of(text: str) -> chat_pb2.ChatMessage:
    return chat_pb2.ChatMessage(content=[chat_pb2.ContentPart(text=text)])


def test_plain_answer_to_the_letter() -> None:
    assert completion(message=message_of("Hi")) == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 5,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "Hi",
                    "refusal": None,
                    "annotations": [],
                },
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 4,
            "total_tokens": 7,
            "prompt_tokens_details": {"cached_tokens": 2},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
    }


def test_empty_answer_is_text() -> None:
    assert completion(message=chat_pb2.ChatMessage())["choices"][0]["message"]["content"] == ""


def test_message_with_only_tool_calls_has_null_content() -> None:
    call = chat_pb2.ToolCall(
        id="call_1", function=chat_pb2.FunctionCall(name="f", arguments_json='{"a":1}')
    )
    choice = completion(
        message=chat_pb2.ChatMessage(tool_calls=[call]),
        finish_reason=chat_pb2.FINISH_REASON_TOOL_CALLS,
    )["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert choice["message"]["tool_calls"] == [
        {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    ]


def test_logprobs_have_all_their_keys() -> None:
    top = chat_pb2.TokenLogprob(token="b", token_bytes=b"b", logprob=-2)
    token = chat_pb2.TokenLogprob(token="\ufffd", token_bytes=b"\xf0\x9f", logprob=-1, top=[top])
    choice = completion(message=message_of("x"), logprobs=[token])["choices"][0]
    assert choice["logprobs"] == {
        "content": [
            {
                "token": "\ufffd",
                "logprob": -1.0,
                "bytes": [0xF0, 0x9F],
                "top_logprobs": [{"token": "b", "logprob": -2.0, "bytes": [98]}],
            }
        ],
        "refusal": None,
    }


def test_extra_fields_are_sent_only_if_set() -> None:
    stop = chat_pb2.MatchedStop(token_id=0)
    choice = completion(message=message_of("x"), matched_stop=stop, token_ids=[1, 2])["choices"][0]
    assert choice["stop_reason"] == 0
    assert choice["token_ids"] == [1, 2]


def test_infinite_logprob_is_still_json() -> None:
    token = chat_pb2.TokenLogprob(token="a", token_bytes=b"a", logprob=float("-inf"))
    choice = completion(message=message_of("x"), logprobs=[token])["choices"][0]
    assert choice["logprobs"]["content"][0]["logprob"] == -9999.0


@pytest.mark.parametrize(
    "fields", [{"include_reasoning": False}, {"reasoning": Reasoning(exclude=True)}]
)
def test_excluded_reasoning_is_not_returned(fields: dict[str, Any]) -> None:
    request = ChatCompletionRequest(model="m", messages=[], **fields)
    message = chat_pb2.ChatMessage(reasoning_content="r", content=[chat_pb2.ContentPart(text="x")])
    assert "reasoning_content" in completion(message=message)["choices"][0]["message"]
    assert "reasoning_content" not in completion(request, message=message)["choices"][0]["message"]


def test_service_tier_is_returned_if_the_request_names_one() -> None:
    request = ChatCompletionRequest(model="m", messages=[], service_tier="auto")
    assert completion(request, message=message_of("x"))["service_tier"] == "default"
    assert "service_tier" not in completion(message=message_of("x"))
