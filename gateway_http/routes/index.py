"""GET /: a description of the server, for people who open its address in a browser."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response

_LINKS = {
    "documentation": "/docs",
    "openapi": "/openapi.json",
    "models": "/v1/models",
    "health": "/healthz",
    "ready": "/readyz",
}
_SUMMARY = "An OpenAI-compatible API for language models. The base URL of clients ends in /v1."
_KEYS = "If the server asks for API keys, only its health can be seen without one."
_JSON = msgspec.json.encode(
    {"name": "chatrpc", "description": _SUMMARY, "api": "/v1", "links": _LINKS}
)
_PAGE = f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>chatrpc</title>
<h1>chatrpc</h1>
<p>{_SUMMARY}</p>
<ul>
{"".join(f'<li><a href="{path}">{name}</a></li>' for name, path in _LINKS.items())}
</ul>
<p>{_KEYS}</p>
</html>
"""
_PAGE_POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


async def index(request: Request) -> Response:
    """Return JSON, or a page if the client accepts HTML. No key is needed, so no model is named."""
    headers = {"vary": "Accept"}
    if "text/html" not in request.headers.get("accept", "").lower():
        return Response(_JSON, headers=headers, media_type="application/json")
    headers["content-security-policy"] = _PAGE_POLICY
    return Response(_PAGE, headers=headers, media_type="text/html")
