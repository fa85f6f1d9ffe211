"""A gRPC status, as HTTP and OpenAI's error object: every row of the table, over real calls."""

from typing import Any

import grpc
import httpx
import pytest

from gateway_http.errors import from_exception
from tests.fakes.chat_service import Fail, FakeService

S = grpc.StatusCode
INVALID = "invalid_request_error"
UNAVAILABLE = "service_unavailable_error"


@pytest.mark.parametrize(
    ("fail", "expected"),
    [
        (
            Fail(S.INVALID_ARGUMENT, reason="INVALID_FIELD", field="sampling.temperature"),
            (400, INVALID, "invalid_value", "temperature"),
        ),
        (
            Fail(S.INVALID_ARGUMENT, reason="MISSING_FIELD", field="messages[0].tool_call_id"),
            (400, INVALID, "missing_required_parameter", "messages[0].tool_call_id"),
        ),
        (
            Fail(S.INVALID_ARGUMENT, reason="UNSUPPORTED_FIELD", field="sampling.n"),
            (400, INVALID, "unsupported_parameter", "n"),
        ),
        (
            Fail(S.INVALID_ARGUMENT, reason="CONTEXT_LENGTH_EXCEEDED", field="messages"),
            (400, INVALID, "context_length_exceeded", "messages"),
        ),
        (
            Fail(S.INVALID_ARGUMENT, reason="TEMPLATE_REFUSED", field="messages"),
            (400, INVALID, "invalid_value", "messages"),
        ),
        (Fail(S.NOT_FOUND, reason="MODEL_NOT_FOUND"), (404, INVALID, "model_not_found", "model")),
        (
            Fail(S.UNAVAILABLE, reason="QUEUE_FULL"),
            (503, UNAVAILABLE, "server_is_overloaded", None),
        ),
        (Fail(S.UNAVAILABLE, reason="DRAINING"), (503, UNAVAILABLE, "service_unavailable", None)),
        (Fail(S.DEADLINE_EXCEEDED, reason="DEADLINE"), (504, "server_error", "timeout", None)),
        (Fail(S.INTERNAL, reason="ENGINE_DEAD"), (500, "server_error", "server_error", None)),
        (Fail(S.INTERNAL, reason="STEP_FAILED"), (500, "server_error", "server_error", None)),
        (Fail(S.INTERNAL, reason="INTERNAL"), (500, "server_error", "server_error", None)),
        (Fail(S.OUT_OF_RANGE), (400, INVALID, "invalid_value", None)),
        (Fail(S.FAILED_PRECONDITION), (400, INVALID, "invalid_value", None)),
        (Fail(S.UNIMPLEMENTED), (400, INVALID, "unsupported_value", None)),
        (Fail(S.UNAUTHENTICATED), (401, INVALID, "invalid_api_key", None)),
        (Fail(S.PERMISSION_DENIED), (403, INVALID, "permission_denied", None)),
        (Fail(S.RESOURCE_EXHAUSTED), (429, "rate_limit_error", "rate_limit_exceeded", None)),
        (Fail(S.CANCELLED), (503, UNAVAILABLE, "service_unavailable", None)),
        (Fail(S.UNKNOWN), (500, "server_error", "server_error", None)),
        (Fail(S.DATA_LOSS), (500, "server_error", "server_error", None)),
    ],
)
async def test_status(
    http: httpx.AsyncClient,
    service: FakeService,
    body: dict[str, Any],
    fail: Fail,
    expected: tuple[int, str, str, str | None],
) -> None:
    service.script = [fail]
    for stream in (False, True):
        answer = await http.post("/v1/chat/completions", json=body | {"stream": stream})

        error = answer.json()["error"]
        assert (answer.status_code, error["type"], error["code"], error["param"]) == expected
        assert set(error) == {"message", "type", "param", "code"}
        assert answer.headers["content-type"] == "application/json"
        # Words are passed on if they are the service's own, known by the reason beside them.
        assert (error["message"] == fail.message) == bool(fail.reason)


async def test_context_length_message_is_exact(
    http: httpx.AsyncClient, service: FakeService, body: dict[str, Any]
) -> None:
    """Clients recognise it by its words."""
    message = (
        "This model's maximum context length is 10 tokens. However, your messages resulted in 11 "
        "tokens. Please reduce the length of the messages."
    )
    service.script = [
        Fail(S.INVALID_ARGUMENT, message, "CONTEXT_LENGTH_EXCEEDED", field="messages")
    ]
    answer = await http.post("/v1/chat/completions", json=body)
    assert answer.json()["error"]["message"] == message


async def test_message_speaks_of_the_parameter_and_not_of_the_wire(
    http: httpx.AsyncClient, service: FakeService, body: dict[str, Any]
) -> None:
    message = "sampling.temperature must be between 0 and 2."
    service.script = [Fail(S.INVALID_ARGUMENT, message, "INVALID_FIELD", "sampling.temperature")]
    answer = await http.post("/v1/chat/completions", json=body)
    assert answer.json()["error"]["message"] == "temperature must be between 0 and 2."


@pytest.mark.parametrize(
    ("fail", "header", "value"),
    [
        (Fail(S.UNAVAILABLE, reason="QUEUE_FULL", retry_after_s=1.2), "retry-after", "2"),
        (Fail(S.UNAVAILABLE), "retry-after", "1"),
        (Fail(S.CANCELLED), "retry-after", "1"),
        (Fail(S.INTERNAL, reason="INTERNAL"), "x-should-retry", "false"),
        (Fail(S.INTERNAL, reason="STEP_FAILED"), "x-should-retry", "false"),
        (Fail(S.INTERNAL, reason="INTERNAL", retry_after_s=3), "retry-after", "3"),
        (Fail(S.INTERNAL, reason="ENGINE_DEAD"), "x-should-retry", None),
        (Fail(S.INVALID_ARGUMENT), "retry-after", None),
    ],
)
async def test_client_is_told_whether_to_retry(
    http: httpx.AsyncClient,
    service: FakeService,
    body: dict[str, Any],
    fail: Fail,
    header: str,
    value: str | None,
) -> None:
    service.script = [fail]
    answer = await http.post("/v1/chat/completions", json=body)
    assert answer.headers.get(header) == value


async def test_status_that_grpc_put_over_the_services_own_is_answered_too(
    http: httpx.AsyncClient, service: FakeService, body: dict[str, Any]
) -> None:
    """Metadata of more than 16 KiB is one such case; the details then contradict the status."""
    service.script = [Fail(S.NOT_FOUND, "x" * 9000, "MODEL_NOT_FOUND")]
    for stream in (False, True):
        answer = await http.post("/v1/chat/completions", json=body | {"stream": stream})
        assert answer.status_code == 429
        assert answer.json()["error"]["code"] == "rate_limit_exceeded"


def test_details_that_are_none_are_passed_over() -> None:
    trailers = grpc.aio.Metadata(("grpc-status-details-bin", b"\xff"))
    error = grpc.aio.AioRpcError(S.UNAVAILABLE, grpc.aio.Metadata(), trailers, "x")
    assert from_exception(error).status == 503


def test_unforeseen_error_tells_nothing() -> None:
    answer = from_exception(RuntimeError("the password is 1234"))
    assert answer.status == 500
    assert "1234" not in answer.body.error.message
    assert answer.headers == {"x-should-retry": "false"}
