"""Cross-origin requests: the origins whose pages may call the API from a browser."""

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from gateway_http.http.request_io import json_response
from gateway_http.protocol.error import ErrorBody, ErrorObject

# The headers of a response that a page may read.
_EXPOSED = (
    "x-request-id",
    "openai-processing-ms",
    "retry-after",
    "x-should-retry",
    "www-authenticate",
    *(
        f"x-ratelimit-{part}-{what}"
        for part in ("limit", "remaining", "reset")
        for what in ("requests", "tokens")
    ),
)


# Origins of pages that this machine serves. No site on the internet can have one of these names.
_LOCAL_ORIGINS = r"https?://(localhost|[a-z0-9.-]+\.localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?"


class Cors(CORSMiddleware):
    """Starlette's middleware with our headers, and with OpenAI's error object for rejections.

    Pages may send any header: OpenAI's SDK sends a dozen of its own. Credentials are never allowed,
    so a page can only send keys that it has itself.

    Args:
        allow_origins: The allowed origins. `*` allows any; None allows localhost at any port.
    """

    def __init__(self, app: ASGIApp, allow_origins: Sequence[str] | None) -> None:
        super().__init__(
            app,
            allow_origins=allow_origins or (),
            allow_origin_regex=_LOCAL_ORIGINS if allow_origins is None else None,
            allow_methods=("GET", "HEAD", "POST", "OPTIONS"),
            allow_headers=("*",),
            allow_private_network=True,
            expose_headers=_EXPOSED,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        """Return 204 if the origin is allowed, and an error response otherwise."""
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return Response(status_code=204, headers=_without_body(response))
        # Starlette sets it even if the origin is not allowed.
        del response.headers["access-control-allow-private-network"]
        message = bytes(response.body).decode()
        error = ErrorObject(f"{message}.", "invalid_request_error", None, "cors")
        return json_response(ErrorBody(error), response.status_code, _without_body(response))


def _without_body(response: Response) -> dict[str, str]:
    """Return the headers of a response that are not about its body."""
    return {
        name: value for name, value in response.headers.items() if not name.startswith("content-")
    }
