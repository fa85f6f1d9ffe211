"""Failures of upstreams: the parts that no response of a fake upstream shows."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import msgspec
import pytest

from service.errors import (
    ContextLengthExceeded,
    InvalidField,
    UpstreamDown,
    UpstreamInvalidResponse,
)
from service.upstream.dialects import Dialect, Names
from service.upstream.failures import AttemptFailed, Failures, failure_of_transport, retry_after_s

FAILURES = Failures(Names(Dialect.VLLM), "chat completions", "m", "messages")


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [
        ("7", 7, 7),
        ("0.5", 0.5, 0.5),
        ("999999", 3600, 3600),
        ("nan", 1, 1),
        ("-1", 1, 1),
        ("soon", 1, 1),
        ("", 1, 1),
    ],
)
def test_retry_after_is_a_number(value: str, least: float, most: float) -> None:
    assert least <= retry_after_s({"retry-after": value}) <= most


def test_retry_after_is_a_date() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(days=1), usegmt=True)
    assert retry_after_s({"retry-after": date}) == 3600  # the most
    assert retry_after_s({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 1


OPENAI = (
    "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 "
    "tokens. Please reduce the length of the messages."
)
VLLM = (
    "This model's maximum context length is 64 tokens. However, your prompt contains at least 65 "
    "input tokens, which exceeds this limit even without any output tokens."
)
VLLM_TEXT = (
    "This model's maximum context length is 64 tokens. However, your prompt contains 999 "
    "characters (more than 630 characters, which is the upper bound for 63 input tokens)."
)
SGLANG = "The input (70 tokens) is longer than the model's context length (64 tokens)."


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        (OPENAI, (9000, 8192)),
        (VLLM, (65, 64)),
        (VLLM_TEXT, (63, 64)),
        (SGLANG, (70, 64)),
    ],
)
def test_length_of_a_prompt_is_found_in_a_message(text: str, lengths: tuple[int, int]) -> None:
    error = FAILURES.of_event({"message": text, "code": 400})
    assert isinstance(error, ContextLengthExceeded)
    assert (error.prompt_tokens, error.max_model_len) == lengths


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED]"), UpstreamDown, "certificate"),
        (httpx.ConnectTimeout(""), UpstreamDown, "cannot be reached"),
        (httpx.ReadTimeout(""), UpstreamDown, "in time"),
        (httpx.ReadError(""), UpstreamDown, "before it was complete"),
        (httpx.DecodingError(""), UpstreamInvalidResponse, "invalid"),
    ],
)
def test_error_of_the_connection_has_its_error(
    error: Exception, kind: type[Exception], words: str
) -> None:
    failed = failure_of_transport(error)
    assert type(failed.error) is kind
    assert words in str(failed.error)


@pytest.mark.parametrize(
    "body", [b"", b"null", b"[]", b'{"error":null}', b'{"error":{"message":5}}']
)
def test_rejection_without_a_message_has_one(body: bytes) -> None:
    error = FAILURES.of_response(httpx.Response(400), body)
    assert isinstance(error, InvalidField)
    assert str(error) == "The upstream service rejects the request."


def test_text_of_the_upstream_is_cut() -> None:
    failed = FAILURES.of_response(httpx.Response(500), b'{"error":"' + b"x" * 9999 + b'"}')
    assert isinstance(failed, AttemptFailed)
    assert failed.text == "x" * 500


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        ({"type": "server_error", "code": "overloaded"}, ", type server_error, code overloaded"),
        ({"type": None, "code": 500}, ", code 500"),
        ({"type": "Cannot serve the secret", "code": {"a": "secret"}}, ""),
        ({"type": "x" * 65}, ""),
    ],
)
def test_cause_has_the_type_and_code_but_no_text(error: dict[str, object], cause: str) -> None:
    body = msgspec.json.encode({"error": {"message": "the secret", **error}})
    failed = FAILURES.of_response(httpx.Response(500), body)
    assert isinstance(failed, AttemptFailed)
    assert failed.cause == f"HTTP status 500{cause}"
    assert failed.text == "the secret"
