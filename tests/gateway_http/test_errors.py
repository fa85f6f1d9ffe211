"""Each gRPC status of a real call, converted to an HTTP status and OpenAI's error object."""

from typing import Any

import grpc
import httpx
import pytest

from gateway_http.errors import from_exception
from tests.fakes.chat_service import Fail, FakeService
from tests.support.gateway import checking_service, serving

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
async def test_status_of_the_service_becomes_its_http_error(
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
        # The message is passed on if it is the service's own, which the reason shows.
        assert (error["message"] == fail.message) == bool(fail.reason)


async def test_context_length_message_is_exact(
    http: httpx.AsyncClient, service: FakeService, body: dict[str, Any]
) -> None:
    """Clients recognise this error by its text."""
    message = (
        "This model's maximum context length is 10 tokens. However, your messages resulted in 11 "
        "tokens. Please reduce the length of the messages."
    )
    service.script = [
        Fail(S.INVALID_ARGUMENT, message, "CONTEXT_LENGTH_EXCEEDED", field="messages")
    ]
    answer = await http.post("/v1/chat/completions", json=body)
    assert answer.json()["error"]["message"] == message


async def test_field_that_is_the_subject_has_the_clients_name(
    http: httpx.AsyncClient, service: FakeService, body: dict[str, Any]
) -> None:
    words = "must be at least 1."
    field = "sampling.max_completion_tokens"
    service.script = [Fail(S.INVALID_ARGUMENT, f"{field} {words}", "INVALID_FIELD", field)]
    for name in ("max_tokens", "max_completion_tokens"):
        answer = await http.post("/v1/chat/completions", json=body | {name: 0})
        error = answer.json()["error"]
        assert (error["message"], error["param"]) == (f"{name} {words}", name)


@pytest.mark.parametrize("field", ["text", "prompts[0].text", "sampling.stop[0]", "messages"])
async def test_sentence_of_the_service_is_not_edited(
    http: httpx.AsyncClient, service: FakeService, body: dict[str, Any], field: str
) -> None:
    """A sentence may contain names of fields as parts of other words or in quotations."""
    message = f"This context, {field} and prompts of max_completion_tokens stay as they are."
    service.script = [Fail(S.INVALID_ARGUMENT, message, "INVALID_FIELD", field)]
    for path, request in (
        ("/v1/chat/completions", body | {"max_tokens": 1}),
        ("/v1/completions", {"model": body["model"], "prompt": "Hi", "max_tokens": 1}),
    ):
        answer = await http.post(path, json=request)
        assert answer.json()["error"]["message"] == message


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
async def test_error_has_the_retry_headers(
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
    """gRPC does so for metadata of more than 16 KiB. Then the details contradict the status."""
    service.script = [Fail(S.NOT_FOUND, "x" * 9000, "MODEL_NOT_FOUND")]
    for stream in (False, True):
        answer = await http.post("/v1/chat/completions", json=body | {"stream": stream})
        assert answer.status_code == 429
        assert answer.json()["error"]["code"] == "rate_limit_exceeded"


def test_details_that_are_none_are_passed_over() -> None:
    trailers = grpc.aio.Metadata(("grpc-status-details-bin", b"\xff"))
    error = grpc.aio.AioRpcError(S.UNAVAILABLE, grpc.aio.Metadata(), trailers, "x")
    assert from_exception(error).status == 503


def test_unexpected_error_has_no_details() -> None:
    answer = from_exception(RuntimeError("the password is 1234"))
    assert answer.status == 500
    assert "1234" not in answer.body.error.message
    assert answer.headers == {"x-should-retry": "false"}


CHAT, TEXT, TOKENIZE = "/v1/chat/completions", "/v1/completions", "/tokenize"
MESSAGES = [{"role": "user", "content": "Hi"}]
LONG = "text prompts " * 100_000
TOO_LONG = (
    "This model's maximum context length is 1000 tokens. However, your {0} resulted in 260000 "
    "tokens. Please reduce the length of the {0}."
)


@pytest.mark.parametrize(
    ("path", "body", "param", "message"),
    [
        (CHAT, {"temperature": 3}, "temperature", "temperature must be between 0 and 2, not 3."),
        (CHAT, {"max_tokens": 0}, "max_tokens", "max_tokens must be at least 1, not 0."),
        (
            CHAT,
            {"max_tokens": 2, "min_tokens": 3},
            "min_tokens",
            "min_tokens must be at most the limit of generated tokens, which is 2, not 3.",
        ),
        (
            CHAT,
            {"repeat_penalty": 0},
            "repeat_penalty",
            "repeat_penalty must be above 0 and at most 1000, not 0.",
        ),
        (
            CHAT,
            {"messages": [{"role": "tool", "content": "x"}]},
            "messages[0].tool_call_id",
            "messages[0].tool_call_id is required.",
        ),
        (
            CHAT,
            {"structured_outputs": {"regex": "("}},
            "structured_outputs.regex",
            None,
        ),
        (
            CHAT,
            {"structured_outputs": {"json": {"type": "object"}}},
            "structured_outputs.json",
            None,
        ),
        (
            CHAT,
            {"messages": [{"role": "user", "content": LONG}]},
            "messages",
            TOO_LONG.format("messages"),
        ),
        (
            TEXT,
            {"prompt": LONG},
            "prompt",
            TOO_LONG.format("prompt"),
        ),
        (TEXT, {"prompt": ["a", LONG]}, "prompt[1]", None),
        (TEXT, {"prompt": [[1], [999_999]]}, "prompt[1][0]", None),
        (TEXT, {"prompt": "a", "max_tokens": 0}, "max_tokens", None),
        (TOKENIZE, {"prompt": LONG}, "prompt", None),
        (TOKENIZE, {"content": LONG}, "content", None),
        (TOKENIZE, {"messages": [{"role": "user", "content": LONG}]}, "messages", None),
        ("/detokenize", {"tokens": [999_999]}, "tokens[0]", None),
    ],
)
async def test_sentences_of_the_real_service_have_the_clients_names(
    path: str, body: dict[str, Any], param: str, message: str | None
) -> None:
    request = {"model": "fake"} | ({"messages": MESSAGES} if path == CHAT else {}) | body
    async with (
        checking_service() as target,
        serving(upstream=target) as url,
        httpx.AsyncClient(base_url=url, timeout=60, verify=False) as http,  # noqa: S501  # plain HTTP
    ):
        error = (await http.post(path, json=request)).json()["error"]
    assert error["param"] == param
    if message is not None:
        assert error["message"] == message
    for garbled in ("conprompt", "prompts", "sampling", "conversation.", "_json", "token_ids."):
        assert garbled not in error["message"]
