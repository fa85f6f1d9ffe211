"""Checks of a request's head that the parser does not make, and responses to HTTP/1.0."""

import re
import sys
from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from gateway_http.protocol.error import ApiError, InvalidRequest

# https://www.rfc-editor.org/rfc/rfc3986#section-3.2, without user information.
_HOST = re.compile(rb"[A-Za-z0-9._~%!$&'()*+,;=\[\]:-]*")


def head_fault(headers: Sequence[tuple[bytes, bytes]], version: str) -> ApiError | None:
    """Return the error of the headers of a request of HTTP `version`, or None if they are valid.

    https://www.rfc-editor.org/rfc/rfc9112#section-3.2 and
    https://www.rfc-editor.org/rfc/rfc9110#section-10.1.1 define the rules.
    """
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) > 1:
        return _invalid("The request has more than one Host header.")
    if not hosts and version != "1.0":
        return _invalid("The request has no Host header.")
    if hosts and not _HOST.fullmatch(hosts[0]):
        return _invalid("The Host header of the request is invalid.")
    expected = [value.lower() for name, value in headers if name == b"expect"]
    if version != "1.0" and any(value != b"100-continue" for value in expected):
        return ApiError(
            417,
            "The only supported value of the Expect header is 100-continue.",
            code="expectation_failed",
        )
    return None


def without_chunks(app: ASGIApp, cycle: RequestResponseCycle) -> ASGIApp:
    """Return `app` for a request of HTTP/1.0, without chunks in responses of unknown length.

    HTTP/1.0 has no chunks, but uvicorn would send them. Instead, the end of the connection ends the
    response: uvicorn closes each connection of HTTP/1.0 after one response.
    """

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        has_length = False

        async def send_plain(message: Message) -> None:
            nonlocal has_length
            if message["type"] == "http.response.start":
                names = {name.lower() for name, _ in message.get("headers", ())}
                has_length = b"content-length" in names
                if not has_length:
                    cycle.chunked_encoding = False
                    cycle.expected_content_length = sys.maxsize
            elif not has_length:  # uvicorn counts down to 0, which must be the end
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await app(scope, receive, send_plain)

    return wrapped


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(message, code="invalid_http")
