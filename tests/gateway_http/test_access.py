"""What every request gets: an id, a trace, a line in the log, and counts under a bounded name."""

import re
from typing import Any

import httpx
import pytest
import structlog
from structlog.testing import capture_logs

from tests.fakes.chat_service import FakeService
from tests.gateway_http.conftest import metric

CHAT = "/v1/chat/completions"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("headers", "request_id"),
    [
        ({"x-request-id": "abc"}, "abc"),
        ({"x-client-request-id": "abc"}, "abc"),
        ({"x-request-id": "one", "x-client-request-id": "two"}, "one"),
        ({"x-request-id": "a b\tc\xe9"}, "abc"),
        ({"x-request-id": "x" * 1000}, "x" * 128),
    ],
)
async def test_request_id_of_the_client_goes_everywhere(
    http: httpx.AsyncClient,
    service: FakeService,
    body: dict[str, Any],
    headers: dict[str, str],
    request_id: str,
) -> None:
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    answer = await http.post(CHAT, json=body, headers=encoded)
    assert answer.headers["x-request-id"] == request_id
    assert service.calls[0].metadata["x-request-id"] == request_id


@pytest.mark.parametrize("sent", [{}, {"x-request-id": ""}, {"x-request-id": b"\xe9"}])
async def test_request_id_is_made_up_where_there_is_none(
    http: httpx.AsyncClient, sent: dict[str, Any]
) -> None:
    ids = {(await http.get("/none", headers=sent)).headers["x-request-id"] for _ in range(2)}
    assert len(ids) == 2
    assert all(re.fullmatch("req_[0-9a-f]{32}", each) for each in ids)


async def test_every_answer_tells_its_processing_time(
    http: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    for answer in (
        await http.post(CHAT, json=body),
        await http.post(CHAT, json=body | {"stream": True}),
        await http.post(CHAT, content=b"{"),
        await http.get("/none"),
    ):
        assert answer.headers["openai-processing-ms"].isdecimal()


@pytest.mark.parametrize(("sent", "passed"), [(TRACE, TRACE), ("nonsense", None), ("\xe9", None)])
async def test_trace(
    http: httpx.AsyncClient,
    service: FakeService,
    body: dict[str, Any],
    sent: str,
    passed: str | None,
) -> None:
    await http.post(CHAT, json=body, headers=[(b"traceparent", sent.encode("latin-1"))])
    assert service.calls[0].metadata.get("traceparent") == passed


async def test_log_line(http: httpx.AsyncClient, body: dict[str, Any]) -> None:
    with capture_logs() as logs:
        await http.post(CHAT, json=body)
        await http.get("/healthz")
        # The line follows the answer: wait until it has been counted.
        await metric(http, "chatrpc_gateway_requests_total", {"route": "/healthz", "status": "200"})
    lines = [line for line in logs if line["event"] == "request"]
    assert {
        key: value for key, value in lines[0].items() if key in {"method", "route", "status"}
    } == {"method": "POST", "route": CHAT, "status": 200}
    assert lines[0]["log_level"] == "info"
    assert lines[0]["duration_ms"] > 0
    assert {line["log_level"] for line in lines[1:]} == {"debug"}


async def test_made_up_paths_make_no_new_labels(http: httpx.AsyncClient) -> None:
    for path in ("/a", "/b", "/v1/models/x", "/v1/models/y/z"):
        await http.get(path)
    counted = "chatrpc_gateway_requests_total"
    assert await metric(http, counted, {"route": "unmatched", "status": "404"}) == 2
    models = {"route": "/v1/models/{model_id}", "status": "404"}
    assert await metric(http, counted, models) == 2


@pytest.mark.parametrize(
    ("headers", "request_id"), [({}, "mine"), ({"x-request-id": "header"}, "header")]
)
async def test_an_id_in_the_body_stands_where_no_header_names_one(
    http: httpx.AsyncClient,
    service: FakeService,
    body: dict[str, Any],
    headers: dict[str, str],
    request_id: str,
) -> None:
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logs:
        answer = await http.post(CHAT, json=body | {"request_id": "mine"}, headers=headers)
        await metric(http, "chatrpc_gateway_requests_total", {"route": CHAT, "status": "200"})
    assert answer.headers["x-request-id"] == request_id
    assert service.calls[0].metadata["x-request-id"] == request_id
    assert [line["request_id"] for line in logs if line.get("route") == CHAT] == [request_id]


@pytest.mark.parametrize("request_id", ["", "x" * 129, "a b", "é", "a\n", 1])
async def test_an_id_that_no_header_could_hold_is_refused(
    http: httpx.AsyncClient, body: dict[str, Any], request_id: Any
) -> None:
    answer = await http.post(CHAT, json=body | {"request_id": request_id})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "request_id")
