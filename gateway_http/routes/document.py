"""GET /openapi.json and /docs."""

from functools import cache
from importlib.resources import files

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gateway_http.openapi.document import document
from gateway_http.routes.probes import VERSION

# The page fetches the document beside it and nothing else: a browser holds it to that.
_PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


async def openapi(_: Request) -> Response:
    return Response(_document(), media_type="application/json")


async def docs(_: Request) -> Response:
    headers = {"content-security-policy": _PAGE_POLICY}
    return Response(_page(), headers=headers, media_type="text/html")


@cache
def _document() -> bytes:
    return msgspec.json.encode(document(VERSION))


@cache
def _page() -> bytes:
    return (files("gateway_http.openapi") / "docs.html").read_bytes()
