"""POST /v1/chat/completions over real sockets, to a real gRPC server."""

import asyncio
from typing import Any

import grpc
import httpx
import pytest

from chatrpc.v1 import chat_pb2
from tests.fakes.chat_service import Admit, Delta, Fail, FakeService, Finish, Hold
from tests.gateway_http.routes.stream_events import events
from tests.support.gateway import metric, serving
from tests.support.raw_http import RawClient

PATH = "/v1/chat/completions"


async def test_unary_request_returns_the_completion(
    http: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    answer = await http.post(PATH, json=body)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["choices"][0]["message"]["content"] == "Hello world"


async def test_streamed_request_sends_events_until_done(
    http: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    answer = await http.post(PATH, json=body | {"stream": True})
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    *chunks, done = events(answer.text)
    assert done == "[DONE]"
    assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks] == [
        "",
        "Hello",
        " world",
        None,
    ]
    assert {(chunk["id"], chunk["created"]) for chunk in chunks} == {("chatcmpl-1", 1_700_000_000)}


async def test_deadline_and_request_reach_the_service(
    service: FakeService, body: dict[str, Any]
) -> None:
    async with (
        serving(upstream=service.target, request_timeout_s=50) as url,
        httpx.AsyncClient(base_url=url) as http,
    ):
        await http.post(PATH, json=body | {"temperature": 0})
    assert service.calls[0].params.sampling.HasField("temperature")
    assert not service.calls[0].params.sampling.HasField("top_p")
    assert service.calls[0].time_remaining_s
    assert 40 < service.calls[0].time_remaining_s < 52  # gRPC rounds it up on the wire


async def test_head_is_not_sent_before_admission(
    pinging_url: str, service: FakeService, body: dict[str, Any]
) -> None:
    service.script = [Hold(), Admit(), Delta("Hello"), Finish()]
    async with RawClient(pinging_url) as client:
        await client.post(body | {"stream": True})
        await service.called()
        head = asyncio.create_task(client.read_until(b"\r\n\r\n"))
        # This is four times the period after which an admitted stream gets a ping.
        assert not (await asyncio.wait({head}, timeout=0.2))[0]
        service.release()
        assert b" 200 " in await head


async def test_pings_until_the_first_token_and_between_tokens(
    pinging_url: str, service: FakeService, body: dict[str, Any]
) -> None:
    service.script = [Admit(), Hold(), Delta("Hello"), Finish()]
    async with RawClient(pinging_url) as client:
        await client.post(body | {"stream": True})
        head = await client.read_until(b"\r\n\r\n")
        assert b" 200 " in head
        for _ in range(3):
            assert b"data:" not in await client.read_until(b": ping\n\n")
        service.release()
        assert b"Hello" in await client.read_until(b"[DONE]")


@pytest.mark.parametrize("admitted", [True, False])
async def test_error_after_the_head_is_an_event_and_the_end(
    http: httpx.AsyncClient, service: FakeService, body: dict[str, Any], admitted: bool
) -> None:
    fail = Fail(grpc.StatusCode.DEADLINE_EXCEEDED, "Too late.", "DEADLINE")
    service.script = [Admit(), Delta("Hello"), fail] if admitted else [Delta("Hello"), fail]
    answer = await http.post(PATH, json=body | {"stream": True})
    assert answer.status_code == 200
    *_, error, done = events(answer.text)
    assert done == "[DONE]"
    assert error == {
        "error": {
            "message": "Too late.",
            "type": "server_error",
            "param": None,
            "code": "timeout",
        }
    }


async def test_service_that_dies_mid_stream(
    url: str, service: FakeService, body: dict[str, Any]
) -> None:
    service.script = [Admit(), Delta("Hello"), Hold()]
    async with RawClient(url) as client:
        await client.post(body | {"stream": True})
        await client.read_until(b"Hello")
        await service.stop()
        rest = await client.read_until(b"[DONE]")
    assert b'"error"' in rest
    assert b"127.0.0.1" not in rest


async def test_unexpected_error_in_a_stream_is_an_event(
    http: httpx.AsyncClient, service: FakeService, body: dict[str, Any]
) -> None:
    """A finish reason of a newer proto cannot be converted, so the client gets an error."""
    service.script = [Delta("Hello"), Finish(reason=99)]  # type: ignore[arg-type]  # an unknown reason
    answer = await http.post(PATH, json=body | {"stream": True})
    *_, error, done = events(answer.text)
    assert done == "[DONE]"
    assert error["error"]["code"] == "server_error"


async def test_refusal_after_a_long_wait_is_still_a_status(
    url: str, service: FakeService, body: dict[str, Any]
) -> None:
    service.script = [Hold(), Fail(grpc.StatusCode.NOT_FOUND, reason="MODEL_NOT_FOUND")]
    async with RawClient(url) as client:
        await client.post(body | {"stream": True})
        await service.called()
        service.release()
        assert b" 404 " in await client.read_until(b"\r\n\r\n")


@pytest.mark.parametrize("stream", [False, True])
async def test_call_rejected_by_a_full_replica_is_retried(
    http: httpx.AsyncClient, service: FakeService, body: dict[str, Any], stream: bool
) -> None:
    service.num_rejections = 2
    answer = await http.post(PATH, json=body | {"stream": stream})
    assert answer.status_code == 200
    assert len(service.calls) == 3


@pytest.mark.parametrize("stream", [False, True])
async def test_call_cancelled_by_a_stopping_replica_is_retried(
    http: httpx.AsyncClient, service: FakeService, body: dict[str, Any], stream: bool
) -> None:
    service.num_rejections = 2
    service.rejection = Fail(grpc.StatusCode.CANCELLED)  # an error of gRPC itself, without a reason
    answer = await http.post(PATH, json=body | {"stream": stream})
    assert answer.status_code == 200
    assert len(service.calls) == 3


@pytest.mark.parametrize("stream", [False, True])
async def test_long_request_is_retried(
    http: httpx.AsyncClient, service: FakeService, body: dict[str, Any], stream: bool
) -> None:
    service.num_rejections = 2
    long = [{"role": "user", "content": "word " * 400_000}]
    answer = await http.post(PATH, json=body | {"stream": stream, "messages": long})
    assert answer.status_code == 200
    assert len(service.calls) == 3


@pytest.mark.parametrize("stream", [False, True])
async def test_no_service_at_all(body: dict[str, Any], stream: bool) -> None:
    async with (
        serving(upstream="127.0.0.1:1") as url,
        httpx.AsyncClient(base_url=url) as http,
    ):
        answer = await http.post(PATH, json=body | {"stream": stream})
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert answer.json()["error"]["code"] == "service_unavailable"
    assert "127.0.0.1" not in answer.text


async def test_deadline_that_passes_is_504(service: FakeService, body: dict[str, Any]) -> None:
    service.script = [Hold()]
    async with (
        serving(upstream=service.target, request_timeout_s=0.2) as url,
        httpx.AsyncClient(base_url=url) as http,
    ):
        while not service.calls:  # on a slow machine, the timeout may end before the call arrives
            assert (await http.post(PATH, json=body)).status_code == 504
    await service.cancelled()


async def test_two_choices_and_their_usage(
    http: httpx.AsyncClient, service: FakeService, body: dict[str, Any]
) -> None:
    service.script = [Admit(), Delta("b", index=1), Delta("a"), Finish(), Finish(index=1)]
    wanted = {"stream": True, "n": 2, "stream_options": {"include_usage": True}}
    answer = await http.post(PATH, json=body | wanted)
    *chunks, usage, _ = events(answer.text)
    assert [chunk["choices"][0]["index"] for chunk in chunks] == [0, 1, 1, 0, 0, 1]
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 2


async def test_large_answer_passes(
    http: httpx.AsyncClient, service: FakeService, body: dict[str, Any]
) -> None:
    """The response is larger than 4 MiB, gRPC's default limit."""
    text = "x" * (5 << 20)
    service.script = [Delta(delta=chat_pb2.Delta(content=text)), Finish()]
    answer = await http.post(PATH, json=body)
    assert answer.json()["choices"][0]["message"]["content"] == text


async def test_time_to_first_token_is_counted(
    http: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    await http.post(PATH, json=body | {"stream": True})
    assert await metric(http, "chatrpc_gateway_time_to_first_token_seconds_count", {}) == 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 0}, "max_completion_tokens"),
    ],
)
async def test_error_has_the_clients_name_of_the_parameter(
    http: httpx.AsyncClient,
    service: FakeService,
    body: dict[str, Any],
    fields: dict[str, int],
    param: str,
) -> None:
    path = "sampling.max_completion_tokens"
    message = f"{path} must be at least 1."
    service.script = [Fail(grpc.StatusCode.INVALID_ARGUMENT, message, "INVALID_FIELD", path)]
    for stream in (False, True):
        error = (await http.post(PATH, json=body | fields | {"stream": stream})).json()["error"]
        assert error["param"] == param
        assert error["message"] == f"{param} must be at least 1."


async def test_prompt_fields_come_with_the_first_chunk(
    http: httpx.AsyncClient, service: FakeService, body: dict[str, Any]
) -> None:
    told = chat_pb2.TokenLogprob(token="i", logprob=-0.5, token_id=105)
    service.completion = chat_pb2.ChatCompletion(
        id="x", choices=[], prompt_token_ids=[72, 105], prompt_logprobs=[told]
    )
    answer = (await http.post(PATH, json=body)).json()
    assert answer["prompt_token_ids"] == [72, 105]
    assert answer["prompt_logprobs"] == [None, {"105": {"logprob": -0.5, "decoded_token": "i"}}]
    plain = events((await http.post(PATH, json=body | {"stream": True})).text)
    assert not any("prompt_token_ids" in chunk for chunk in plain[:-1])
