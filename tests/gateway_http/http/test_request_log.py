"""The id, trace, log line and metrics of every request."""

import re
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import structlog
from structlog.testing import capture_logs

from tests.fakes.chat_service import Admit, Delta, Fail, FakeService, Hold
from tests.fakes.wait import until
from tests.support.api_keys import key, write
from tests.support.gateway import checking_service, metric, serving
from tests.support.raw_http import RawClient

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


async def test_every_response_has_its_processing_time(
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
async def test_only_valid_trace_context_is_passed_on(
    http: httpx.AsyncClient,
    service: FakeService,
    body: dict[str, Any],
    sent: str,
    passed: str | None,
) -> None:
    await http.post(CHAT, json=body, headers=[(b"traceparent", sent.encode("latin-1"))])
    assert service.calls[0].metadata.get("traceparent") == passed


async def finished(logs: list[Any], number: int = 1) -> list[Any]:
    """Wait until this many requests have been logged. The line is written after the response."""

    def found() -> list[Any]:
        return [line for line in logs if line["event"] == "request_finished"]

    await until(lambda: len(found()) >= number)
    return found()


async def test_each_request_leaves_one_log_line(
    http: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    with capture_logs() as logs:
        await http.post(CHAT, json=body, headers={"user-agent": "tests/1"})
        await http.get("/healthz")
        chat, probe = await finished(logs, 2)
    assert (chat["method"], chat["route"], chat["status"]) == ("POST", CHAT, 200)
    assert chat["log_level"] == "info"
    assert chat["duration_ms"] > 0
    assert re.fullmatch(r"127\.0\.0\.1:\d+", chat["client"])
    assert chat["user_agent"] == "tests/1"
    assert "reason" not in chat
    assert (probe["route"], probe["log_level"]) == ("/healthz", "debug")


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_log_line_of_a_completion_has_its_model_and_tokens(is_streamed: bool) -> None:
    async with (
        checking_service() as target,  # it generates "ok", in two tokens
        serving(upstream=target) as url,
        httpx.AsyncClient(base_url=url, timeout=60) as http,
    ):
        with capture_logs() as logs:
            chat = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
            await http.post(CHAT, json=chat | {"stream": is_streamed})
            at_gateway, at_service = sorted(await finished(logs, 2), key=lambda e: "code" in e)
    for line in (at_gateway, at_service):
        assert line["model"] == "fake"
        assert line["is_streamed"] is is_streamed
        assert line["prompt_tokens"] == len("<user>hi<assistant>")
        assert (line["completion_tokens"], line["cached_tokens"]) == (2, 0)
        assert line["finish_reasons"] == ["length"]
    assert ("ttft_ms" in at_gateway) is is_streamed


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_log_line_of_a_rejected_request_has_the_reason_of_the_service(
    http: httpx.AsyncClient, service: FakeService, body: dict[str, Any], is_streamed: bool
) -> None:
    service.script = [Fail(grpc.StatusCode.UNAVAILABLE, "Full: secret words.", "QUEUE_FULL")]
    with capture_logs() as logs:
        await http.post(CHAT, json=body | {"stream": is_streamed})
        (line,) = await finished(logs)
    assert (line["status"], line["reason"], line["model"]) == (503, "QUEUE_FULL", "org/tiny")
    assert "secret words" not in str(line)  # an error's message may quote the prompt
    labels = {"route": CHAT, "model": "other", "reason": "QUEUE_FULL"}
    assert await metric(http, "chatrpc_gateway_request_failures_total", labels) == 1


async def test_log_line_of_an_invalid_request_names_the_parameter(
    http: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    with capture_logs() as logs:
        await http.post(CHAT, json=body | {"n": "many"})
        (line,) = await finished(logs)
    assert (line["status"], line["reason"], line["field"]) == (400, "INVALID_TYPE", "n")


async def test_log_line_of_a_stream_that_fails_has_the_reason(
    http: httpx.AsyncClient, service: FakeService, body: dict[str, Any]
) -> None:
    fail = Fail(grpc.StatusCode.INTERNAL, reason="STEP_FAILED")
    service.script = [Admit(), Delta("Hello"), fail]
    with capture_logs() as logs:
        await http.post(CHAT, json=body | {"stream": True})
        (line,) = await finished(logs)
    assert (line["status"], line["reason"]) == (200, "STEP_FAILED")


async def test_log_line_of_a_client_that_left_has_the_reason(
    url: str, service: FakeService, body: dict[str, Any]
) -> None:
    service.script = [Admit(), Delta("Hello"), Hold()]
    with capture_logs() as logs:
        async with RawClient(url) as client:
            await client.post(body | {"stream": True})
            await client.read_until(b"Hello")
        (line,) = await finished(logs)
    assert (line["status"], line["reason"]) == (499, "CLIENT_DISCONNECTED")


async def test_log_line_without_a_service_has_the_reason(
    body: dict[str, Any],
) -> None:
    async with (
        serving(upstream="127.0.0.1:1") as url,
        httpx.AsyncClient(base_url=url, timeout=60) as http,
    ):
        with capture_logs() as logs:
            assert (await http.post(CHAT, json=body)).status_code == 503
            (line,) = await finished(logs)
    assert line["reason"] == "UPSTREAM_UNREACHABLE"
    assert "127.0.0.1:1" in line["cause"]


async def test_words_of_clients_are_bounded_and_escaped_in_the_log(
    http: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    with capture_logs() as logs:
        agent = b"\x9b31mred " + b"x" * 1000  # some terminals interpret \x9b as an escape
        await http.post(
            CHAT, json=body | {"model": "a\nb" + "m" * 1000}, headers=[(b"user-agent", agent)]
        )
        (line,) = await finished(logs)
    for name in ("user_agent", "model"):
        assert line[name].isprintable()
        assert len(line[name]) < 250
    assert line["user_agent"].startswith("\\x9b31mred ")
    assert line["model"].startswith("a\\nb")


async def test_missing_key_is_logged_with_the_route(tmp_path: Path) -> None:
    keys = write(tmp_path / "keys.toml", key("sk-chatrpc-test"))
    async with (
        serving(api_keys=keys) as url,
        httpx.AsyncClient(base_url=url, timeout=60) as http,
    ):
        with capture_logs() as logs:
            for _ in range(50):
                assert (await http.post(CHAT)).status_code == 401
            (line,) = await finished(logs)  # the first line of a flood; others are only counted
        admitted = {"authorization": "Bearer sk-chatrpc-test"}
        page = (await http.get("/metrics", headers=admitted)).text
    assert (line["route"], line["status"]) == (CHAT, 401)
    assert line["reason"] == "UNAUTHENTICATED"
    counted = f'{{model="",reason="UNAUTHENTICATED",route="{CHAT}"}} 50.0'
    assert f"chatrpc_gateway_request_failures_total{counted}" in page


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
async def test_request_id_of_the_body_is_used_without_a_header(
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
    assert (await finished(logs))[0]["request_id"] == request_id


@pytest.mark.parametrize("request_id", ["", "x" * 129, "a b", "é", "a\n", 1])
async def test_request_id_unfit_for_a_header_is_rejected(
    http: httpx.AsyncClient, body: dict[str, Any], request_id: Any
) -> None:
    answer = await http.post(CHAT, json=body | {"request_id": request_id})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "request_id")
