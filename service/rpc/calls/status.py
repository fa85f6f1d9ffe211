"""Converts errors to gRPC statuses: a status code, and google.rpc details for programs.

See https://google.aip.dev/193. The reasons are those of `chatrpc.v1.ErrorReason`.
"""

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from chatrpc.v1 import errors_pb2
from service import errors

DOMAIN = "chatrpc"

Metadata = tuple[tuple[str, str | bytes], ...]

# The trailers contain a message up to four times, and gRPC escapes each byte outside of ASCII as
# three bytes. It accepts trailers of up to 8 KiB.
_MAX_TEXT_BYTES = 500

# https://github.com/grpc/proposal/blob/master/A6-client-retries.md#pushback
_PUSHBACK_KEY = "grpc-retry-pushback-ms"
_NUM_TOKENS_KEY = "chatrpc-num-tokens"

# The first class that matches an error is used, so subclasses come before their base classes.
_STATUSES: tuple[tuple[type[errors.ChatrpcError], int, errors_pb2.ErrorReason.ValueType], ...] = (
    (
        errors.ContextLengthExceeded,
        code_pb2.INVALID_ARGUMENT,
        errors_pb2.ERROR_REASON_CONTEXT_LENGTH_EXCEEDED,
    ),
    (errors.ExceedsLimit, code_pb2.INVALID_ARGUMENT, errors_pb2.ERROR_REASON_EXCEEDS_LIMIT),
    (errors.TemplateRejected, code_pb2.INVALID_ARGUMENT, errors_pb2.ERROR_REASON_TEMPLATE_REFUSED),
    (errors.UnsupportedField, code_pb2.INVALID_ARGUMENT, errors_pb2.ERROR_REASON_UNSUPPORTED_FIELD),
    (errors.MissingField, code_pb2.INVALID_ARGUMENT, errors_pb2.ERROR_REASON_MISSING_FIELD),
    (errors.InvalidField, code_pb2.INVALID_ARGUMENT, errors_pb2.ERROR_REASON_INVALID_FIELD),
    (
        errors.UnsupportedMethod,
        code_pb2.UNIMPLEMENTED,
        errors_pb2.ERROR_REASON_UNSUPPORTED_METHOD,
    ),
    (errors.ModelNotFound, code_pb2.NOT_FOUND, errors_pb2.ERROR_REASON_MODEL_NOT_FOUND),
    (
        errors.Unauthenticated,
        code_pb2.UNAUTHENTICATED,
        errors_pb2.ERROR_REASON_UNAUTHENTICATED,
    ),
    (
        errors.ActingForbidden,
        code_pb2.PERMISSION_DENIED,
        errors_pb2.ERROR_REASON_ACTING_FORBIDDEN,
    ),
    (
        errors.ModelForbidden,
        code_pb2.PERMISSION_DENIED,
        errors_pb2.ERROR_REASON_MODEL_FORBIDDEN,
    ),
    (errors.LimitReached, code_pb2.RESOURCE_EXHAUSTED, errors_pb2.ERROR_REASON_LIMIT_REACHED),
    (errors.QueueFull, code_pb2.UNAVAILABLE, errors_pb2.ERROR_REASON_QUEUE_FULL),
    (errors.Draining, code_pb2.UNAVAILABLE, errors_pb2.ERROR_REASON_DRAINING),
    (errors.Starting, code_pb2.UNAVAILABLE, errors_pb2.ERROR_REASON_STARTING),
    (errors.UpstreamDown, code_pb2.UNAVAILABLE, errors_pb2.ERROR_REASON_UPSTREAM_DOWN),
    (
        errors.UpstreamRateLimited,
        code_pb2.UNAVAILABLE,
        errors_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED,
    ),
    (
        errors.UpstreamAccessDenied,
        code_pb2.INTERNAL,
        errors_pb2.ERROR_REASON_UPSTREAM_ACCESS_DENIED,
    ),
    (
        errors.UpstreamInvalidResponse,
        code_pb2.INTERNAL,
        errors_pb2.ERROR_REASON_UPSTREAM_INVALID_RESPONSE,
    ),
    (errors.DeadlinePassed, code_pb2.DEADLINE_EXCEEDED, errors_pb2.ERROR_REASON_DEADLINE),
    (errors.StepFailed, code_pb2.INTERNAL, errors_pb2.ERROR_REASON_STEP_FAILED),
    (errors.EngineDead, code_pb2.INTERNAL, errors_pb2.ERROR_REASON_ENGINE_DEAD),
)


def status(error: Exception, request_id: str) -> status_pb2.Status:
    """Return the status of an error. That of an unexpected error contains only the request id."""
    for kind, code, reason in _STATUSES:
        if isinstance(error, kind):
            return _status(code, _short(str(error)), _info(reason, error), *_details(error))
    message = f"Internal error. The service's log has it under request id {request_id}."
    info = _info(errors_pb2.ERROR_REASON_INTERNAL, error)
    return _status(code_pb2.INTERNAL, message, info)


def trailing_metadata(proto: status_pb2.Status) -> Metadata:
    """Return the metadata with a status's details, which a client's `grpc_status` reads."""
    packed = rpc_status.to_status(proto).trailing_metadata
    return tuple(packed or ())


def retry_pushback(error: Exception) -> Metadata:
    """Return the metadata with the delay after which gRPC may retry the call.

    The retry may go to another replica. So the delay is less than that of `RetryInfo`, which is for
    this replica.
    """
    if not isinstance(error, errors.Unavailable):
        return ()
    if error.elsewhere_after_s is None:
        return ((_PUSHBACK_KEY, "-1"),)  # gRPC makes no further attempt
    return ((_PUSHBACK_KEY, str(int(error.elsewhere_after_s * 1000))),)


def tokens_computed(num_tokens: int) -> Metadata:
    """Return the metadata with the number of tokens that a failed call has used."""
    return ((_NUM_TOKENS_KEY, str(num_tokens)),)


def code(proto: status_pb2.Status) -> grpc.StatusCode:
    return rpc_status.to_status(proto).code


def reason(proto: status_pb2.Status) -> str:
    """Return the name of a status's reason, such as QUEUE_FULL."""
    info = error_details_pb2.ErrorInfo()
    proto.details[0].Unpack(info)
    return str(info.reason)


def _status(code: int, message: str, *details: Message) -> status_pb2.Status:
    proto = status_pb2.Status(code=code, message=message)
    for detail in details:
        proto.details.add().Pack(detail)
    return proto


def _info(
    reason: errors_pb2.ErrorReason.ValueType, error: Exception
) -> error_details_pb2.ErrorInfo:
    name = errors_pb2.ErrorReason.Name(reason).removeprefix("ERROR_REASON_")
    info = error_details_pb2.ErrorInfo(reason=name, domain=DOMAIN)
    if isinstance(error, errors.ContextLengthExceeded):
        info.metadata["prompt_tokens"] = str(error.prompt_tokens)
        info.metadata["max_model_len"] = str(error.max_model_len)
    elif isinstance(error, errors.ModelNotFound | errors.ModelForbidden | errors.UnsupportedMethod):
        info.metadata["model"] = _short(error.model)
    return info


def _details(error: errors.ChatrpcError) -> list[Message]:
    if isinstance(error, errors.InvalidField):
        field = error_details_pb2.BadRequest.FieldViolation(
            field=_short(error.field), description=_short(error.words)
        )
        return [error_details_pb2.BadRequest(field_violations=[field])]
    if isinstance(error, errors.LimitReached):
        violation = error_details_pb2.QuotaFailure.Violation(
            subject=error.what, description=_short(str(error))
        )
        quota = error_details_pb2.QuotaFailure(violations=[violation])
        return [quota, _retry_info(error.retry_after_s)]
    if isinstance(error, errors.Unavailable):
        return [_retry_info(error.retry_after_s)]
    return []


def _retry_info(after_s: float) -> error_details_pb2.RetryInfo:
    delay = Duration()
    delay.FromMilliseconds(int(after_s * 1000))
    return error_details_pb2.RetryInfo(retry_delay=delay)


def _short(text: str) -> str:
    """Return the text, which may come from the caller, cut to the size of an error message."""
    return text.encode()[:_MAX_TEXT_BYTES].decode(errors="ignore")
