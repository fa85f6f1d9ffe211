"""Cross-origin requests: which pages of other origins may call the API from a browser."""

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from gateway_http.http.request_io import json_response
from gateway_http.protocol.error import ErrorBody, ErrorObject

# What a page may read of an answer beside its body.
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


# Pages that this machine serves itself. A site cannot have one of these names.
_LOCAL_ORIGINS = r"https?://(localhost|[a-z0-9.-]+\.localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?"


class Cors(CORSMiddleware):
    """Allowed pages may send any headers: OpenAI's SDK sends a dozen of its own.

    Credentials are never allowed, so a page can send nothing that it does not know itself.

    Args:
        allow_origins: `*` is any; None: those of localhost, at any port.
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
        answer = super().preflight_response(request_headers)
        if answer.status_code == 200:
            return Response(status_code=204, headers=_without_body(answer))
        # Starlette allows it even if the origin is not allowed.
        del answer.headers["access-control-allow-private-network"]
        message = bytes(answer.body).decode()
        error = ErrorObject(f"{message}.", "invalid_request_error", None, "cors")
        return json_response(ErrorBody(error), answer.status_code, _without_body(answer))


def _without_body(answer: Response) -> dict[str, str]:
    return {
        name: value for name, value in answer.headers.items() if not name.startswith("content-")
    }
