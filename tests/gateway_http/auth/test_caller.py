"""The permissions, charges and limits of callers."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect

from chatrpc.v1 import caller_pb2, chat_pb2
from chatrpc_process.access.keys import Key
from chatrpc_process.access.quotas import Quotas
from chatrpc_process.access.secret import digest_of
from gateway_http.auth.caller import Caller, TokenCharge, duration
from gateway_http.http.request_record import RequestRecord
from gateway_http.metrics import Metrics
from gateway_http.protocol.error import ApiError
from gateway_http.routes.completion_metrics import CompletionMetrics

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
def test_duration_is_never_too_short(seconds: float) -> None:
    text = duration(seconds)
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:([\d.]+)s|(\d+)ms)", text)
    assert found, text
    hours, minutes, left, ms = (float(part or 0) for part in found.groups())
    told = hours * 3600 + minutes * 60 + left + ms / 1000
    assert seconds - 1e-6 <= told <= seconds + 1.001


class Failed(grpc.aio.AioRpcError):
    """A call that a service has ended, with the number of computed tokens if it reports one."""

    def __init__(self, code: grpc.StatusCode, num_tokens: int | None = None) -> None:
        said = () if num_tokens is None else (("chatrpc-num-tokens", str(num_tokens)),)
        super().__init__(code, grpc.aio.Metadata(), grpc.aio.Metadata(*said))


def chat(max_tokens: int | None = 10, n: int = 1) -> chat_pb2.ChatCompletionParams:
    sampling = chat_pb2.SamplingParams(n=n, max_completion_tokens=max_tokens)
    return chat_pb2.ChatCompletionParams(sampling=sampling)


@contextmanager
def generation(
    caller: Caller, params: Any = None, num_bytes: int = 36, *, is_streamed: bool = True
) -> Iterator[TokenCharge]:
    """Admit a generation with a prompt of at most 100 tokens and an output limit of 10."""
    params = chat() if params is None else params
    num_bytes += params.sampling.ByteSize()  # these bytes are not in the prompt
    with caller.generation(params, num_bytes, {}, is_streamed=is_streamed) as charge:
        yield charge


def left(caller: Caller) -> int:
    return int(caller.limits()["x-ratelimit-remaining-tokens"])


def test_caller_without_a_key_is_neither_limited_nor_named() -> None:
    anybody, params = Caller(None, QUOTAS), chat(None)
    with generation(anybody, params) as charge:
        charge.note(10**9)
    with anybody.tokenization():
        pass
    assert not params.sampling.HasField("max_completion_tokens")
    assert anybody.limits() == {}
    assert anybody.may_use("any")
    assert anybody.may_use_all_models
    assert anybody.info is None


def test_model_that_the_key_does_not_permit_is_rejected() -> None:
    one = caller(models=("mine-*",))
    one.check_model("yours", "mine-2")
    with pytest.raises(ApiError) as caught:
        one.check_model("yours")
    assert caught.value.status == 403
    assert not one.may_use_all_models


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, caller_pb2.CallerInfo(name="a", weight=1, cache_namespace="a", min_priority=0)),
        (
            {"owner": "team", "weight": 7, "min_priority": -3},
            caller_pb2.CallerInfo(name="team", weight=7, cache_namespace="team", min_priority=-3),
        ),
        (
            {"cache_scope": "shared"},
            caller_pb2.CallerInfo(name="a", weight=1, min_priority=0),
        ),
    ],
)
def test_info_describes_the_owner_of_the_key(
    options: dict[str, Any], expected: caller_pb2.CallerInfo
) -> None:
    assert caller(**options).info == expected


def test_stream_is_charged_what_has_been_sent_however_it_ends() -> None:
    one = caller(tokens_per_minute=1000)
    with pytest.raises(ConnectionError), generation(one) as charge:
        assert left(one) == 1000 - 110
        telemetry = CompletionMetrics(Metrics(), charge.note, RequestRecord())
        telemetry.note_chunk(chunk(0), "", is_started=False)
        assert left(one) == 1000 - 110
        telemetry.note_chunk(chunk(1, 30), "", is_started=True)
        assert left(one) == 1000 - 41  # its prompt is known
        telemetry.note_chunk(chunk(2, 30), "", is_started=True)  # reported twice, and counted once
        telemetry.note_chunk(chunk(3), "", is_started=True)
        raise ConnectionError
    assert left(one) == 1000 - 36


@pytest.mark.parametrize(("is_streamed", "charged"), [(True, 100), (False, 110)])
def test_client_that_leaves_before_any_token_is_charged_its_reservation(
    is_streamed: bool, charged: int
) -> None:
    one = caller(tokens_per_minute=1000)
    with pytest.raises(ClientDisconnect), generation(one, is_streamed=is_streamed):
        raise ClientDisconnect
    assert left(one) == 1000 - charged


@pytest.mark.parametrize(
    ("error", "charged"),
    [
        (Failed(grpc.StatusCode.INVALID_ARGUMENT, 0), 0),
        (Failed(grpc.StatusCode.INVALID_ARGUMENT, 73), 73),
        (Failed(grpc.StatusCode.UNAVAILABLE), 0),
        (Failed(grpc.StatusCode.DEADLINE_EXCEEDED), 110),
        (Failed(grpc.StatusCode.DEADLINE_EXCEEDED, 73), 73),
        (ApiError(404, "There is no such model."), 0),
    ],
)
def test_failed_call_is_charged_what_the_service_has_computed(
    error: Exception, charged: int
) -> None:
    one = caller(tokens_per_minute=1000)
    with pytest.raises(type(error)), generation(one, is_streamed=False):
        raise error
    assert left(one) == 1000 - charged


def test_response_that_is_not_streamed_is_charged_once() -> None:
    one = caller(tokens_per_minute=100)
    with generation(one, is_streamed=False) as charge:
        charge.note(40)
        charge.charge_used()
        assert one.limits() == {
            "x-ratelimit-limit-tokens": "100",
            "x-ratelimit-remaining-tokens": "60",
            "x-ratelimit-reset-tokens": "24s",
        }
    assert left(one) == 60


def test_embeddings_without_a_count_are_charged_the_least_tokens_of_their_input() -> None:
    one = caller(tokens_per_minute=1000)
    with one.computation(80, "input", {}):
        pass
    assert left(one) == 990
    with one.computation(80, "input", {}) as charge:
        charge.note(3)
    assert left(one) == 987
    with pytest.raises(ApiError), one.computation(80, "input", {}):
        raise ApiError(404, "There is no such model.")
    assert left(one) == 987


def test_limit_that_is_reached_has_a_retry_after() -> None:
    one = caller(requests_per_minute=2)
    with generation(one), one.tokenization():
        pass
    for context in (generation(one), one.tokenization()):
        with pytest.raises(ApiError) as caught, context:
            pass
        assert caught.value.status == 429
        assert caught.value.headers == {"retry-after": "30"}
    assert one.limits() == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1m0s",
    }


@pytest.mark.parametrize(
    ("options", "params", "names", "param"),
    [
        ({"max_concurrent_requests": 3}, chat(n=96), {}, "n"),
        ({"tokens_per_minute": 10}, chat(100), {}, "max_completion_tokens"),
        (
            {"tokens_per_minute": 10},
            chat(100),
            {"max_completion_tokens": "max_tokens"},
            "max_tokens",
        ),
    ],
)
def test_request_that_exceeds_a_limit_by_itself_names_its_parameter(
    options: dict[str, int], params: Any, names: dict[str, str], param: str
) -> None:
    context = caller(**options).generation(params, 1, names, is_streamed=False)
    with pytest.raises(ApiError) as caught, context:
        pass
    error = caught.value.body.error
    assert (caught.value.status, error.param) == (400, param)
    assert error.code == "request_exceeds_limit"
    assert "retry-after" not in caught.value.headers


def test_sequences_at_once_are_limited_and_an_end_makes_room() -> None:
    one = caller(max_concurrent_requests=3)
    with generation(one, chat(n=2)):
        with pytest.raises(ApiError) as caught, generation(one, chat(n=2)):
            pass
        assert caught.value.headers == {"retry-after": "1"}
    with generation(one, chat(n=3)):
        pass


def test_missing_output_limit_of_a_caller_with_a_token_limit_is_set() -> None:
    with generation(caller(tokens_per_minute=1000), chat(None, n=2)) as charge:
        assert charge.output_limit == 500
    with generation(caller(tokens_per_minute=1000), chat(3, n=2)) as charge:
        assert charge.output_limit is None
