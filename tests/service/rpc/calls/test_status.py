"""The status of each domain error: its code, its reason and its details."""

import pytest
from google.rpc import code_pb2, error_details_pb2

from chatrpc.v1 import errors_pb2
from service import errors
from service.rpc.calls import status

EXAMPLES: list[tuple[errors.ChatrpcError, int, str]] = [
    (errors.InvalidField("a.b", "bad"), code_pb2.INVALID_ARGUMENT, "INVALID_FIELD"),
    (errors.MissingField("a"), code_pb2.INVALID_ARGUMENT, "MISSING_FIELD"),
    (errors.UnsupportedField("a", "no"), code_pb2.INVALID_ARGUMENT, "UNSUPPORTED_FIELD"),
    (
        errors.ContextLengthExceeded(9, 8),
        code_pb2.INVALID_ARGUMENT,
        "CONTEXT_LENGTH_EXCEEDED",
    ),
    (errors.ExceedsLimit("sampling.n", "no"), code_pb2.INVALID_ARGUMENT, "EXCEEDS_LIMIT"),
    (errors.TemplateRejected("no"), code_pb2.INVALID_ARGUMENT, "TEMPLATE_REFUSED"),
    (errors.ModelNotFound("m"), code_pb2.NOT_FOUND, "MODEL_NOT_FOUND"),
    (errors.Unauthenticated(is_missing=True), code_pb2.UNAUTHENTICATED, "UNAUTHENTICATED"),
    (errors.ActingForbidden("x-bin"), code_pb2.PERMISSION_DENIED, "ACTING_FORBIDDEN"),
    (errors.UnsupportedMethod("M", "m"), code_pb2.UNIMPLEMENTED, "UNSUPPORTED_METHOD"),
    (errors.ModelForbidden("m"), code_pb2.PERMISSION_DENIED, "MODEL_FORBIDDEN"),
    (errors.LimitReached("over", "tokens", 3), code_pb2.RESOURCE_EXHAUSTED, "LIMIT_REACHED"),
    (errors.QueueFull(1, 1.5), code_pb2.UNAVAILABLE, "QUEUE_FULL"),
    (errors.Draining(), code_pb2.UNAVAILABLE, "DRAINING"),
    (errors.Starting(), code_pb2.UNAVAILABLE, "STARTING"),
    (errors.UpstreamDown("down"), code_pb2.UNAVAILABLE, "UPSTREAM_DOWN"),
    (errors.UpstreamRateLimited("429", 7), code_pb2.UNAVAILABLE, "UPSTREAM_RATE_LIMITED"),
    (errors.UpstreamAccessDenied("401"), code_pb2.INTERNAL, "UPSTREAM_ACCESS_DENIED"),
    (errors.UpstreamInvalidResponse("bad"), code_pb2.INTERNAL, "UPSTREAM_INVALID_RESPONSE"),
    (errors.DeadlinePassed("late"), code_pb2.DEADLINE_EXCEEDED, "DEADLINE"),
    (errors.StepFailed(), code_pb2.INTERNAL, "STEP_FAILED"),
    (errors.EngineDead(), code_pb2.INTERNAL, "ENGINE_DEAD"),
]


@pytest.mark.parametrize(("error", "code", "reason"), EXAMPLES, ids=lambda v: str(v)[:20])
def test_status_of_an_error_has_its_code_and_reason(
    error: errors.ChatrpcError, code: int, reason: str
) -> None:
    proto = status.status(error, "id")
    assert proto.code == code
    assert status.reason(proto) == reason
    assert proto.message == str(error)


def test_every_reason_of_the_wire_is_used() -> None:
    used = {reason for _, _, reason in EXAMPLES} | {"INTERNAL", "UNSPECIFIED"}
    assert used == {n.removeprefix("ERROR_REASON_") for n in errors_pb2.ErrorReason.keys()}  # noqa: SIM118


def test_status_of_an_invalid_field_names_the_field() -> None:
    proto = status.status(errors.InvalidField("a.b", "bad"), "id")
    bad = error_details_pb2.BadRequest()
    assert proto.details[1].Unpack(bad)
    assert [(v.field, v.description) for v in bad.field_violations] == [("a.b", "bad")]


def test_retry_pushback_is_sent_only_if_unavailable() -> None:
    for error, _, _ in EXAMPLES:
        pushback = dict(status.retry_pushback(error))
        assert bool(pushback) == isinstance(error, errors.Unavailable)
        if isinstance(error, errors.Unavailable) and error.elsewhere_after_s is not None:
            assert 0 <= int(pushback["grpc-retry-pushback-ms"]) <= error.retry_after_s * 1000


def test_rate_limit_of_an_upstream_is_not_retried_on_another_replica() -> None:
    assert dict(status.retry_pushback(errors.UpstreamRateLimited("429", 7))) == {
        "grpc-retry-pushback-ms": "-1"
    }


def test_status_of_a_full_queue_has_a_retry_delay() -> None:
    proto = status.status(errors.QueueFull(1, 1.5), "id")
    retry = error_details_pb2.RetryInfo()
    assert proto.details[1].Unpack(retry)
    assert retry.retry_delay.ToTimedelta().total_seconds() == 1.5


def test_status_of_a_long_prompt_has_both_lengths() -> None:
    proto = status.status(errors.ContextLengthExceeded(9, 8), "id")
    info = error_details_pb2.ErrorInfo()
    assert proto.details[0].Unpack(info)
    assert dict(info.metadata) == {"prompt_tokens": "9", "max_model_len": "8"}


def test_status_of_an_unexpected_error_hides_its_text() -> None:
    proto = status.status(KeyError("secret"), "req-1")
    assert proto.code == code_pb2.INTERNAL
    assert "secret" not in str(proto)
    assert "req-1" in proto.message


def test_long_text_of_a_client_is_shortened_in_the_trailers() -> None:
    name = "日" * 10_000
    proto = status.status(errors.ModelNotFound(name), "id")
    assert sum(len(value) for _, value in status.trailing_metadata(proto)) < 4096
    assert len(proto.message.encode()) <= 500
