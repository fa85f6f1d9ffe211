"""What a caller may, and what its answers say of its limits."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatrpc.v1 import chat_pb2
from chatrpc_process.keys import Key
from chatrpc_process.quotas import Quotas
from chatrpc_process.secret import digest_of
from gateway_http.caller import Caller, duration
from gateway_http.metrics import Metrics
from gateway_http.protocol.error import ApiError
from gateway_http.request_log import RequestRecord
from gateway_http.telemetry import AnswerTelemetry

QUOTAS = Quotas(clock=lambda: 0.0)


def caller(**limits: Any) -> Caller:
    return Caller(Key(name="a", sha256=digest_of("a"), **limits), Quotas(clock=lambda: 0.0))


def chunk(num_tokens: int, num_prompt_tokens: int = 0) -> Any:
    return chat_pb2.ChatCompletionChunk(
        usage=chat_pb2.Usage(prompt_tokens=num_prompt_tokens),
        choices=[chat_pb2.ChoiceDelta(num_tokens=num_tokens)],
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0001, "1ms"),
        (0.012, "12ms"),
        (1, "1s"),
        (1.5, "1.5s"),
        (59.9996, "1m0s"),
        (360, "6m0s"),
        (3725.2, "1h2m6s"),
    ],
)
def test_durations_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.floats(0, 1e6))
def test_no_duration_is_told_too_short(seconds: float) -> None:
    text = duration(seconds)
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:([\d.]+)s|(\d+)ms)", text)
    assert found, text
    hours, minutes, left, ms = (float(part or 0) for part in found.groups())
    told = hours * 3600 + minutes * 60 + left + ms / 1000
    assert seconds - 1e-6 <= told <= seconds + 1.001


def test_nobody_is_anybody() -> None:
    anybody = Caller(None, QUOTAS)
    with anybody.generation("any") as spending:
        spending.note(10**9)
    assert anybody.limits() == {}
    assert anybody.may_use("any")


def test_a_model_of_others_is_refused() -> None:
    with pytest.raises(ApiError) as caught, caller(models=("mine-*",)).generation("yours"):
        pass
    assert caught.value.status == 403


def test_what_a_stream_took_is_counted_whatever_ends_it() -> None:
    one = caller(tokens_per_minute=100)
    with pytest.raises(ConnectionError), one.generation("m") as spending:
        telemetry = AnswerTelemetry(Metrics(), spending.note, RequestRecord())
        telemetry.note_chunk(chunk(1, 30), is_started=True)
        telemetry.note_chunk(chunk(2, 30), is_started=True)  # told twice, and counted once
        telemetry.note_chunk(chunk(3), is_started=True)
        raise ConnectionError
    assert one.limits()["x-ratelimit-remaining-tokens"] == "64"


def test_a_whole_answer_is_counted_once() -> None:
    one = caller(tokens_per_minute=100)
    with one.generation("m") as spending:
        spending.note(40)
        spending.settle()
        assert one.limits() == {
            "x-ratelimit-limit-tokens": "100",
            "x-ratelimit-remaining-tokens": "60",
            "x-ratelimit-reset-tokens": "24s",
        }
    assert one.limits()["x-ratelimit-remaining-tokens"] == "60"


def test_a_limit_says_when_to_come_back() -> None:
    one = caller(requests_per_minute=2)
    for _ in range(2):
        with one.generation("m"):
            pass
    with pytest.raises(ApiError) as caught, one.generation("m"):
        pass
    assert caught.value.status == 429
    assert caught.value.headers == {"retry-after": "30"}
    assert one.limits() == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1m0s",
    }


def test_requests_at_once_are_bounded_and_an_end_makes_room() -> None:
    one = caller(max_concurrent_requests=1)
    with one.generation("m"):
        with pytest.raises(ApiError) as caught, one.generation("m"):
            pass
        assert caught.value.headers == {"retry-after": "1"}
    with one.generation("m"):
        pass
