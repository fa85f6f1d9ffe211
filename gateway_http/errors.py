"""From a failed call to the service, or any other failure, to OpenAI's error object.

The words of the service reach the client; those of the gRPC library, which name addresses, do not.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import grpc
import structlog
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from chatrpc.v1 import errors_pb2
from gateway_http.protocol.error import ApiError
from gateway_http.protocol.params import NO_NAMES, param_of

_log = structlog.get_logger(__name__)

_DOMAIN = "chatrpc"


class _Answer(NamedTuple):
    """What a gRPC status is over HTTP: status, OpenAI's type and code, and words if it has none."""

    status: int
    kind: str
    code: str | None
    message: str


_INVALID = _Answer(400, "invalid_request_error", "invalid_value", "The request is invalid.")
_INTERNAL = _Answer(500, "server_error", "server_error", "The server had an error.")
_UNAVAILABLE = _Answer(
    503,
    "service_unavailable_error",
    "service_unavailable",
    "The model service cannot be reached. Please retry later.",
)
_ANSWERS = {
    grpc.StatusCode.INVALID_ARGUMENT: _INVALID,
    grpc.StatusCode.OUT_OF_RANGE: _INVALID,
    grpc.StatusCode.FAILED_PRECONDITION: _INVALID,
    grpc.StatusCode.UNIMPLEMENTED: _Answer(
        400, "invalid_request_error", "unsupported_value", "The service does not offer this."
    ),
    grpc.StatusCode.UNAUTHENTICATED: _Answer(
        401, "invalid_request_error", "invalid_api_key", "The credentials are missing or invalid."
    ),
    grpc.StatusCode.PERMISSION_DENIED: _Answer(
        403, "invalid_request_error", "permission_denied", "This is not permitted."
    ),
    grpc.StatusCode.NOT_FOUND: _Answer(
        404, "invalid_request_error", "not_found", "There is no such thing here."
    ),
    grpc.StatusCode.RESOURCE_EXHAUSTED: _Answer(
        429, "rate_limit_error", "rate_limit_exceeded", "A limit is exceeded. Please retry later."
    ),
    # By the service, which stops: a client that leaves is told nothing.
    grpc.StatusCode.CANCELLED: _UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: _Answer(
        504, "server_error", "timeout", "The request took longer than it may."
    ),
    grpc.StatusCode.UNAVAILABLE: _UNAVAILABLE,
}

_SERVICE_REASONS = {
    value.name.removeprefix("ERROR_REASON_")
    for value in errors_pb2.DESCRIPTOR.enum_types_by_name["ErrorReason"].values
}

_CODES = {
    "MISSING_FIELD": "missing_required_parameter",
    "UNSUPPORTED_FIELD": "unsupported_parameter",
    "CONTEXT_LENGTH_EXCEEDED": "context_length_exceeded",
    "EXCEEDS_LIMIT": "request_exceeds_limit",
    "MODEL_NOT_FOUND": "model_not_found",
    "QUEUE_FULL": "server_is_overloaded",
}


def from_exception(error: Exception) -> ApiError:
    """Whatever went wrong, as an answer. What nobody foresaw is logged, and none of it is told."""
    match error:
        case ApiError():
            return error
        case grpc.aio.AioRpcError():
            return from_rpc(error)
    _log.error("unexpected_error", exc_info=error)
    return _api_error(_INTERNAL, {"x-should-retry": "false"}, reason="INTERNAL")


def from_rpc(error: grpc.aio.AioRpcError, names: Mapping[str, str] = NO_NAMES) -> ApiError:
    """Read the status, and the `google.rpc` details that the service adds to it.

    `names`: what the client calls a parameter that has several names. The service's sentences never
    contain the names of fields, except as their subject, so none is edited.
    """
    details = _Details(error)
    if details.reason == "ACTING_FORBIDDEN":
        # It is about the gateway's own key, which the client can neither know nor change.
        _log.error("acting_forbidden_by_service", reason=error.details())
        return _api_error(_INTERNAL, {"x-should-retry": "false"})
    reason, cause = _failure(error, details)
    answer = _ANSWERS.get(error.code(), _INTERNAL)
    answer = answer._replace(code=_CODES.get(details.reason, answer.code))
    if not details.reason:
        if reason == "UPSTREAM_NOT_READY":
            answer = answer._replace(message="The model is not ready. Please retry later.")
        headers = _headers(answer.status, details)
        return _api_error(answer, headers, reason=reason, cause=cause)
    message = error.details() or answer.message
    param = "model" if details.reason == "MODEL_NOT_FOUND" else None
    if details.field:
        param = param_of(details.field, names)
        # Otherwise the field is the subject of the sentence, and the description is the rest.
        message = details.words if details.words == message else f"{param} {details.words}"
    answer = answer._replace(message=message)
    return _api_error(answer, _headers(answer.status, details), param, reason)


class _Details:
    """The parts of a rich status that the HTTP answer is made from."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self.reason = ""
        self.field = ""
        self.words = ""  # about the field
        self.retry_after_s: int | None = None
        status = _rich_status(error)
        for detail in status.details if status else ():
            self._read(detail)

    def _read(self, detail: Any) -> None:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo.FromString(detail.value)
            self.reason = info.reason if info.domain == _DOMAIN else ""
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest.FromString(detail.value)
            if bad.field_violations:
                self.field = bad.field_violations[0].field
                self.words = bad.field_violations[0].description
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            delay = error_details_pb2.RetryInfo.FromString(detail.value).retry_delay
            self.retry_after_s = math.ceil(delay.seconds + delay.nanos / 1e9)


def _rich_status(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    """The status that the service wrote; None if gRPC or a proxy has put another one over it."""
    try:
        # The function reads a Call; the error has the parts of it that matter.
        return rpc_status.from_call(error)  # type: ignore[arg-type]
    except (ValueError, DecodeError):
        return None


def _headers(status: int, details: _Details) -> dict[str, str]:
    """OpenAI's clients repeat every 5xx on their own, so they are told when that is of no use."""
    if details.retry_after_s is not None:
        return {"retry-after": str(details.retry_after_s)}
    if status == 503:
        return {"retry-after": "1"}
    if status == 401:
        return {"www-authenticate": 'Bearer realm="chatrpc"'}
    if status == 500 and details.reason != "ENGINE_DEAD":  # another replica lives
        return {"x-should-retry": "false"}
    return {}


# Words in gRPC's own messages about a service that cannot be called. The first that fits decides.
_UPSTREAM_FAILURES = (
    (("unhealthy",), "UPSTREAM_NOT_READY"),
    (("handshake", "SSL", "certificate"), "UPSTREAM_TLS_FAILED"),
    (("DNS", "resolution", "Domain name"), "UPSTREAM_NAME_UNRESOLVED"),
    (("connect to", "refused", "unreachable"), "UPSTREAM_UNREACHABLE"),
    (("closed", "reset", "GOAWAY", "ping timeout", "Broken pipe"), "UPSTREAM_CONNECTION_LOST"),
)


def _failure(error: grpc.aio.AioRpcError, details: _Details) -> tuple[str, str]:
    """Return the reason of a failed call, and gRPC's message if the service was not reached.

    The message of a service is not returned: it may quote the request.
    """
    if details.reason:
        return details.reason if details.reason in _SERVICE_REASONS else "OTHER", ""
    code, message = error.code(), error.details() or ""
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return "UPSTREAM_TIMEOUT", message
    if code is not grpc.StatusCode.UNAVAILABLE:
        return f"UPSTREAM_{code.name}", ""
    for words, reason in _UPSTREAM_FAILURES:
        if any(word in message for word in words):
            return reason, message
    return "UPSTREAM_UNAVAILABLE", message


def _api_error(
    answer: _Answer,
    headers: dict[str, str],
    param: str | None = None,
    reason: str = "",
    cause: str = "",
) -> ApiError:
    return ApiError(
        answer.status,
        answer.message,
        kind=answer.kind,
        param=param,
        code=answer.code,
        headers=headers,
        reason=reason,
        cause=cause,
    )
