"""Error responses that are sent without the application, before a request is complete."""

from http import HTTPStatus

import msgspec

from gateway_http.protocol.error import ApiError


def early_response(error: ApiError) -> bytes:
    """Return the bytes of an error response. Its headers announce that the connection closes."""
    body = msgspec.json.encode(error.body)
    status = HTTPStatus(error.status)
    headers = "".join(f"{name}: {value}\r\n" for name, value in error.headers.items())
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        "content-type: application/json\r\n"
        f"content-length: {len(body)}\r\n"
        f"{headers}"
        "connection: close\r\n\r\n"
    )
    return head.encode() + body
