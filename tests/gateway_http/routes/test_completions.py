"""POST /v1/completions over real sockets, to a real gRPC server."""

from typing import Any

import grpc
import httpx
import openai
import pytest

from chatrpc.v1 import chat_pb2, completion_pb2
from tests.fakes.chat_service import MODEL, Admit, Delta, Fail, FakeService, Finish, Hold, Piece
from tests.gateway_http.routes.stream_events import events
from tests.support.raw_http import RawClient

BODY = {"model": MODEL, "prompt": "Once"}


@pytest.mark.parametrize("path", ["/v1/completions", "/completions"])
async def test_unary_request_returns_the_completion(http: httpx.AsyncClient, path: str) -> None:
    answer = await http.post(path, json=BODY)
    assert answer.status_code == 200
    assert answer.json() == {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 1_700_000_000,
        "model": MODEL,
        "choices": [{"index": 0, "text": "Hello world", "finish_reason": "stop", "logprobs": None}],
        "usage": {
            "prompt_tokens": 7,
            "completion_tokens": 2,
            "total_tokens": 9,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
        "system_fingerprint": "fp_1",
    }


async def test_streamed_request_sends_events_until_done(
    http: httpx.AsyncClient, service: FakeService
) -> None:
    service.script = [Admit(), Delta("a", index=1), Delta("b"), Finish(), Finish(index=1)]
    *pieces, done = events((await http.post("/v1/completions", json=BODY | {"stream": True})).text)
    assert done == "[DONE]"
    assert [(p["choices"][0]["index"], p["choices"][0]["text"]) for p in pieces] == [
        (1, "a"),
        (0, "b"),
        (0, ""),
        (1, ""),
    ]
    assert [p["choices"][0]["finish_reason"] for p in pieces] == [None, None, "stop", "stop"]
    assert {(p["id"], p["object"]) for p in pieces} == {("cmpl-1", "text_completion")}
    assert not any("usage" in piece for piece in pieces)


@pytest.mark.parametrize("running", [False, True])
async def test_stream_with_usage(http: httpx.AsyncClient, running: bool) -> None:
    options = {"include_usage": True, "continuous_usage_stats": running}
    body = BODY | {"stream": True, "stream_options": options}
    *pieces, last, _ = events((await http.post("/v1/completions", json=body)).text)
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 9
    counted = [p["usage"] and p["usage"]["completion_tokens"] for p in pieces]
    assert counted == ([1, 2, 2] if running else [None] * 3)


async def test_error_after_the_head_is_an_event(
    http: httpx.AsyncClient, service: FakeService
) -> None:
    fail = Fail(grpc.StatusCode.DEADLINE_EXCEEDED, "Too late.", "DEADLINE")
    service.script = [Admit(), Delta("Hello"), fail]
    answer = await http.post("/v1/completions", json=BODY | {"stream": True})
    *_, error, done = events(answer.text)
    assert (error["error"]["code"], done) == ("timeout", "[DONE]")


@pytest.mark.parametrize(
    ("fields", "field", "param"),
    [
        ({}, "prompts[0]", "prompt"),
        ({"prompt": [5]}, "prompts[0].token_ids.ids[0]", "prompt[0]"),
        ({"prompt": ["a", "b"]}, "prompts[1].text", "prompt[1]"),
        ({"prompt": ["a", "b"]}, "prompts", "prompt"),
        ({"max_tokens": 0}, "sampling.max_completion_tokens", "max_tokens"),
        ({"repeat_penalty": 9}, "sampling.repetition_penalty", "repeat_penalty"),
        ({"logprobs": 99}, "logprobs", "logprobs"),
    ],
)
async def test_error_has_the_clients_name_of_the_parameter(
    http: httpx.AsyncClient, service: FakeService, fields: dict[str, Any], field: str, param: str
) -> None:
    service.script = [
        Fail(grpc.StatusCode.INVALID_ARGUMENT, f"{field} is bad.", "INVALID_FIELD", field)
    ]
    for stream in (False, True):
        answer = await http.post("/v1/completions", json=BODY | fields | {"stream": stream})
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, param)
        assert error["message"] == f"{param} is bad."


async def test_leaving_cancels_the_call(url: str, service: FakeService) -> None:
    service.script = [Admit(), Hold()]
    for stream in (False, True):
        async with RawClient(url) as client:
            await client.post(BODY | {"stream": stream}, "/v1/completions")
            await service.called(1 + stream)
        await service.cancelled(1 + stream)


async def test_openais_client_reads_log_probabilities(url: str, service: FakeService) -> None:
    told = chat_pb2.TokenLogprob(token="c", token_bytes=b"c", logprob=-1.5, token_id=99)
    service.script = [
        Admit(),
        Piece(
            completion_pb2.CompletionChoiceDelta(
                text="abc",
                num_tokens=1,
                finish_reason=chat_pb2.FINISH_REASON_LENGTH,
                prompt_tokens=[
                    completion_pb2.PromptToken(token="ab", token_bytes=b"ab", token_id=1)
                ],
                logprobs=[told],
                text_offsets=[0, 2],
            )
        ),
    ]
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        whole = await client.completions.create(model=MODEL, prompt=[1], echo=True, logprobs=1)
        stream = await client.completions.create(
            model=MODEL, prompt=[1], echo=True, logprobs=1, stream=True
        )
        [piece] = [piece async for piece in stream if piece.choices]
    for answer in (whole, piece):
        logprobs = answer.choices[0].logprobs
        assert logprobs
        assert logprobs.tokens == ["ab", "c"]
        # The first value is null, which the client's type does not allow.
        assert list(logprobs.token_logprobs or ()) == [None, -1.5]
        assert logprobs.text_offset == [0, 2]
    assert service.calls[0].params.logprobs == 1
