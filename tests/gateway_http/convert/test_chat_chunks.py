"""The order and the shape of streamed chunks."""

from typing import Any

import msgspec
from google.protobuf.timestamp_pb2 import Timestamp

from chatrpc.v1 import chat_pb2
from gateway_http.convert.chat_chunks import ChunkStream
from gateway_http.protocol.request import ChatCompletionRequest
from gateway_http.protocol.sampling import StreamOptions


def delta(
    index: int = 0, num_tokens: int = 1, finish: bool = False, **said: Any
) -> chat_pb2.ChoiceDelta:
    reason = chat_pb2.FINISH_REASON_STOP if finish else chat_pb2.FINISH_REASON_UNSPECIFIED
    return chat_pb2.ChoiceDelta(
        index=index, num_tokens=num_tokens, delta=chat_pb2.Delta(**said), finish_reason=reason
    )


def run(stream: ChunkStream, *deltas: chat_pb2.ChoiceDelta) -> list[dict[str, Any]]:
    wire = [chat_pb2.ChatCompletionChunk(choices=[delta]) for delta in deltas]
    wire[0].id, wire[0].model = "chatcmpl-1", "m"
    wire[0].create_time.CopyFrom(Timestamp(seconds=5))
    usage = chat_pb2.Usage(prompt_tokens=3, completion_tokens=len(deltas), cached_prompt_tokens=1)
    wire.append(chat_pb2.ChatCompletionChunk(usage=usage))
    chunks = [chunk for each in wire for chunk in stream.push(each, each.model)] + stream.finish()
    return [msgspec.json.decode(msgspec.json.encode(chunk)) for chunk in chunks]


def choices(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [choice for chunk in chunks for choice in chunk["choices"]]


def plain(n: int = 1, include_usage: bool = False, running_usage: bool = False) -> ChunkStream:
    options = StreamOptions(include_usage=include_usage, continuous_usage_stats=running_usage)
    return ChunkStream(ChatCompletionRequest(model="m", messages=[], n=n, stream_options=options))


def test_plain_stream_to_the_letter() -> None:
    chunks = run(plain(), delta(content="Hi"), delta(finish=True))
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 5, "model": "m"}
    assert chunks == [
        head | {"choices": [{"index": 0, "logprobs": None} | rest]}
        for rest in (
            {"delta": {"role": "assistant", "content": "", "refusal": None}, "finish_reason": None},
            {"delta": {"content": "Hi"}, "finish_reason": None},
            {"delta": {}, "finish_reason": "stop"},
        )
    ]


def test_last_text_and_finish_reason_come_apart() -> None:
    last = choices(run(plain(), delta(content="Hi", finish=True)))[1:]
    assert [choice["delta"] for choice in last] == [{"content": "Hi"}, {}]
    assert [choice["finish_reason"] for choice in last] == [None, "stop"]


def test_roles_of_all_choices_come_first_and_once() -> None:
    stream = choices(
        run(plain(n=3), delta(index=2, content="c"), delta(index=0, content="a"), delta(index=1))
    )
    assert [choice["index"] for choice in stream] == [0, 1, 2, 2, 0]
    assert ["role" in choice["delta"] for choice in stream] == [True] * 3 + [False] * 2


def test_no_role_before_a_token() -> None:
    stream = plain()
    opening = chat_pb2.ChatCompletionChunk(
        id="c", choices=[chat_pb2.ChoiceDelta(delta=chat_pb2.Delta(role=chat_pb2.ROLE_ASSISTANT))]
    )
    assert stream.push(opening, "m") == []
    assert not stream.is_started


def test_role_comes_with_a_first_token_whose_text_is_held_back() -> None:
    stream = plain()
    held = chat_pb2.ChatCompletionChunk(id="c", choices=[delta()])
    assert [chunk.choices[0].delta.role for chunk in stream.push(held, "")] == ["assistant"]


def test_usage_comes_last_in_its_own_chunk() -> None:
    chunks = run(plain(include_usage=True), delta(content="Hi"), delta(finish=True))
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * 3
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] == 5
    assert chunks[-1]["usage"]["prompt_tokens_details"] == {"cached_tokens": 1}


def test_no_usage_unless_asked_for() -> None:
    chunks = run(plain(running_usage=True), delta(content="Hi"), delta(finish=True))
    assert not any("usage" in chunk for chunk in chunks)


def test_running_usage_counts_tokens_not_chunks() -> None:
    stream = plain(include_usage=True, running_usage=True)
    chunks = run(stream, delta(content="Hi", num_tokens=3), delta(content="!", num_tokens=2))
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks[:-1]] == [3, 3, 5]


def test_tool_call_is_named_once() -> None:
    def piece(arguments: str, **opening: Any) -> chat_pb2.ChoiceDelta:
        name = opening.pop("name", "")
        function = chat_pb2.FunctionCall(name=name, arguments_json=arguments)
        return delta(tool_calls=[chat_pb2.ToolCall(index=0, function=function, **opening)])

    stream = choices(run(plain(), piece("", id="call_1", name="f"), piece('{"a"'), piece(":1}")))
    assert [choice["delta"]["tool_calls"] for choice in stream[1:]] == [
        [
            {
                "index": 0,
                "id": "call_1",
                "type": "function",
                "function": {"name": "f", "arguments": ""},
            }
        ],
        [{"index": 0, "function": {"arguments": '{"a"'}}],
        [{"index": 0, "function": {"arguments": ":1}"}}],
    ]
    assert all("content" not in choice["delta"] for choice in stream[1:])


def test_pieces_of_several_calls_and_the_text_before_them_come_one_by_one() -> None:
    def call(index: int, arguments: str) -> chat_pb2.ToolCall:
        function = chat_pb2.FunctionCall(name="f", arguments_json=arguments)
        return chat_pb2.ToolCall(index=index, id=f"call_{index}", function=function)

    both = delta(content="Wait.", tool_calls=[call(0, '{"a":1}'), call(1, "")], finish=True)
    both.logprobs.add(token="W", token_bytes=b"W", logprob=-1)
    stream = choices(run(plain(), both))[1:]
    said = [choice["delta"] for choice in stream]
    assert said[0] == {"content": "Wait."}
    pieces = [each["tool_calls"] for each in said[1:4]]
    assert [len(piece) for piece in pieces] == [1, 1, 1]
    assert [piece[0]["index"] for piece in pieces] == [0, 0, 1]
    assert [piece[0]["function"] for piece in pieces] == [
        {"name": "f", "arguments": ""},
        {"arguments": '{"a":1}'},
        {"name": "f", "arguments": ""},
    ]
    assert said[4] == {}
    assert [choice["logprobs"] is None for choice in stream] == [False, True, True, True, True]


def test_logprobs_of_held_back_text_have_an_empty_text() -> None:
    held = delta()
    held.logprobs.add(token="a", token_bytes=b"a", logprob=-1)
    choice = choices(run(plain(), held))[1]
    assert choice["delta"] == {"content": ""}
    assert [token["bytes"] for token in choice["logprobs"]["content"]] == [[97]]


def test_reasoning_is_apart_from_content() -> None:
    choice = choices(run(plain(), delta(reasoning_content="Hm.")))[1]
    assert choice["delta"] == {"reasoning_content": "Hm."}


def test_excluded_reasoning_is_not_sent() -> None:
    request = ChatCompletionRequest(
        model="m", messages=[], include_reasoning=False, service_tier="auto"
    )
    chunks = run(
        ChunkStream(request), delta(reasoning_content="r"), delta(content="x"), delta(finish=True)
    )
    deltas = [choice["delta"] for choice in choices(chunks)]
    assert [each.get("content") for each in deltas] == ["", "x", None]
    assert not any("reasoning_content" in each for each in deltas)
    assert {chunk["service_tier"] for chunk in chunks} == {"default"}
