"""Converts failures of calls to the service, and of the gateway itself, to OpenAI's error object.

Messages of the service are sent to the client. Messages of the gRPC library are only logged, since
they contain addresses.
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


class _HttpError(NamedTuple):
    """The HTTP status, OpenAI's type and code, and the default message for a gRPC status."""

    status: int
    kind: str
    code: str | None
    message: str


_INVALID = _HttpError(400, "invalid_request_error", "invalid_value", "The request is invalid.")
_INTERNAL = _HttpError(500, "server_error", "server_error", "The server had an error.")
_UNAVAILABLE = _HttpError(
    503,
    "service_unavailable_error",
    "service_unavailable",
    "The model service cannot be reached. Please retry later.",
)
_BY_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: _INVALID,
    grpc.StatusCode.OUT_OF_RANGE: _INVALID,
    grpc.StatusCode.FAILED_PRECONDITION: _INVALID,
    grpc.StatusCode.UNIMPLEMENTED: _HttpError(
        400,
        "invalid_request_error",
        "unsupported_value",
        "The service does not support this request.",
    ),
    grpc.StatusCode.UNAUTHENTICATED: _HttpError(
        401, "invalid_request_error", "invalid_api_key", "The credentials are missing or invalid."
    ),
    grpc.StatusCode.PERMISSION_DENIED: _HttpError(
        403, "invalid_request_error", "permission_denied", "This is not permitted."
    ),
    grpc.StatusCode.NOT_FOUND: _HttpError(
        404, "invalid_request_error", "not_found", "The requested item was not found."
    ),
    grpc.StatusCode.RESOURCE_EXHAUSTED: _HttpError(
        429, "rate_limit_error", "rate_limit_exceeded", "A limit is exceeded. Please retry later."
    ),
    # The service cancels calls when it stops. (If the client cancelled, it gets no response.)
    grpc.StatusCode.CANCELLED: _UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: _HttpError(
        504, "server_error", "timeout", "The request exceeded its time limit."
    ),
    grpc.StatusCode.UNAVAILABLE: _UNAVAILABLE,
}

_SERVICE_REASONS = {
    value.name.removeprefix("ERROR_REASON_")
    for value in errors_pb2.DESCRIPTOR.enum_types_by_name["ErrorReason"].values
}

# OpenAI's codes for reasons of the service, where they differ from the status's code.
_CODES = {
    "MISSING_FIELD": "missing_required_parameter",
    "UNSUPPORTED_FIELD": "unsupported_parameter",
    "CONTEXT_LENGTH_EXCEEDED": "context_length_exceeded",
    "EXCEEDS_LIMIT": "request_exceeds_limit",
    "MODEL_NOT_FOUND": "model_not_found",
    "QUEUE_FULL": "server_is_overloaded",
}
_DO_NOT_RETRY = {"x-should-retry": "false"}


def from_exception(error: Exception) -> ApiError:
    """Return the error to send for any exception. Details of an unexpected one are only logged."""
    match error:
        case ApiError():
            return error
        case grpc.aio.AioRpcError():
            return from_rpc(error)
    _log.error("unexpected_error", exc_info=error)
    return _api_error(_INTERNAL, _DO_NOT_RETRY, reason="INTERNAL")


def from_rpc(error: grpc.aio.AioRpcError, names: Mapping[str, str] = NO_NAMES) -> ApiError:
    """Return the error to send for a failed call, from its status and its `google.rpc` details.

    Args:
        error: The error of the failed call.
        names: The client's names of parameters; see `param_of`.
    """
    details = _Details(error)
    if details.reason == "ACTING_FORBIDDEN":
        # The cause is the gateway's own key, which the client can neither see nor change.
        _log.error("acting_forbidden_by_service", reason=error.details())
        return _api_error(_INTERNAL, _DO_NOT_RETRY)
    reason, cause = _failure(error, details)
    http_error = _BY_STATUS.get(error.code(), _INTERNAL)
    http_error = http_error._replace(code=_CODES.get(details.reason, http_error.code))
    param = None
    if not details.reason:
        if reason == "UPSTREAM_NOT_READY":
            http_error = http_error._replace(message="The model is not ready. Please retry later.")
    elif details.field:
        param = param_of(details.field, names)
        http_error = http_error._replace(message=details.sentence(param))
    else:
        param = "model" if details.reason == "MODEL_NOT_FOUND" else None
        http_error = http_error._replace(message=error.details() or http_error.message)
    return _api_error(http_error, _headers(http_error.status, details), param, reason, cause)


class _Details:
    """The `google.rpc` details of a failed call.

    Attributes:
        reason: The service's reason, one of `chatrpc.v1.ErrorReason`; "" if the error does not
            come from the service.
        field: The path in the proto of the invalid field; "" if there is none.
        description: A sentence about the field that does not contain its path, or the predicate of
            a sentence whose subject is the field.
        retry_after_s: The time in seconds after which a retry may succeed; None if unknown.
    """

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self.reason = ""
        self.field = ""
        self.description = ""
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
                self.description = bad.field_violations[0].description
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            delay = error_details_pb2.RetryInfo.FromString(detail.value).retry_delay
            self.retry_after_s = math.ceil(delay.seconds + delay.nanos / 1e9)

    def sentence(self, param: str) -> str:
        """Return the sentence about the field for a client that calls it `param`."""
        is_predicate = self.description[:1].islower()
        return f"{param} {self.description}" if is_predicate else self.description


def _rich_status(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    """Return the service's status; None if gRPC or a proxy has replaced it."""
    try:
        # The function takes a Call. The error has the same attributes.
        return rpc_status.from_call(error)  # type: ignore[arg-type]
    except (ValueError, DecodeError):
        return None


def _headers(status: int, details: _Details) -> dict[str, str]:
    """Return the headers about retries. Without them, OpenAI's clients retry after every 5xx."""
    if details.retry_after_s is not None:
        return {"retry-after": str(details.retry_after_s)}
    if status == 503:
        return {"retry-after": "1"}
    if status == 401:
        return {"www-authenticate": 'Bearer realm="chatrpc"'}
    if status == 500 and details.reason != "ENGINE_DEAD":  # another replica may serve it
        return _DO_NOT_RETRY
    return {}


# Parts of gRPC's messages about a service that cannot be called. The first match is used.
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
    http_error: _HttpError,
    headers: dict[str, str],
    param: str | None = None,
    reason: str = "",
    cause: str = "",
) -> ApiError:
    return ApiError(
        http_error.status,
        http_error.message,
        kind=http_error.kind,
        param=param,
        code=http_error.code,
        headers=headers,
        reason=reason,
        cause=cause,
    )
