"""GET /openapi.json and /docs."""

from functools import cache
from importlib.resources import files

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gateway_http.http.endpoint import Endpoint
from gateway_http.openapi.document import document
from gateway_http.routes.probes import VERSION
from gateway_http.routes.request_state import endpoints_of

# The browser enforces this policy: the page may fetch only the document.
_PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


async def openapi(request: Request) -> Response:
    """Return the OpenAPI document."""
    return Response(_document(endpoints_of(request)), media_type="application/json")


async def docs(_: Request) -> Response:
    """Return the page that shows the OpenAPI document."""
    headers = {"content-security-policy": _PAGE_POLICY}
    return Response(_page(), headers=headers, media_type="text/html")


@cache
def _document(endpoints: tuple[Endpoint, ...]) -> bytes:
    return msgspec.json.encode(document(endpoints, VERSION))


@cache
def _page() -> bytes:
    return (files("gateway_http.openapi") / "docs.html").read_bytes()
