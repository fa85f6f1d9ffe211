"""OpenAI's error object, and the exceptions that become one."""

from collections.abc import Mapping
from typing import Annotated

import msgspec

from gateway_http.protocol.field_notes import http_only


class ErrorObject(msgspec.Struct, frozen=True):
    """An error in OpenAI's form. Over gRPC it is a status with `google.rpc` details."""

    message: Annotated[str, http_only("The cause, for people. Over gRPC: the status's message.")]
    type: Annotated[str, http_only("The kind of the error. Over gRPC: the status's code.")]
    param: Annotated[
        str | None,
        http_only(
            "The path of the field that caused it. Over gRPC: `BadRequest.FieldViolation.field`."
        ),
    ]
    code: Annotated[
        str | None, http_only("The cause, for programs. Over gRPC: `ErrorInfo.reason`.")
    ]


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of every response that is not a success."""

    error: Annotated[ErrorObject, http_only("The error.")]


# OpenAI's codes that stand for a reason of `chatrpc.v1.ErrorReason`.
_REASONS = {
    "invalid_value": "INVALID_FIELD",
    "missing_required_parameter": "MISSING_FIELD",
    "unsupported_parameter": "UNSUPPORTED_FIELD",
    "invalid_api_key": "UNAUTHENTICATED",
    "permission_denied": "MODEL_FORBIDDEN",
    "rate_limit_exceeded": "LIMIT_REACHED",
    "timeout": "DEADLINE",
}


class ApiError(Exception):
    """A response other than success: an HTTP status, OpenAI's error object, and extra headers.

    Args:
        reason: why, for logs and metrics, in capitals: one of `chatrpc.v1.ErrorReason` where one
            fits. There is a bounded number of these. Absent: made from `code`.
        cause: what is known besides and meant for the operator only.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        reason: str = "",
        cause: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason or _REASONS.get(code or "", (code or f"HTTP_{status}").upper())
        self.cause = cause
        self.body = ErrorBody(ErrorObject(message, kind, param, code))
        self.headers = headers or {}


class InvalidRequest(ApiError):
    """The caller's mistake, at `param` where one parameter is to blame."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(400, message, param=param, code=code)


class UnsupportedParameter(InvalidRequest):
    """A parameter that is known, and not served."""

    def __init__(self, param: str, hint: str = "") -> None:
        message = f"Unsupported parameter: '{param}' is not supported by this server. {hint}"
        super().__init__(message.rstrip(), param, "unsupported_parameter")
