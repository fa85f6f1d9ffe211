"""API keys over HTTP. With a file of keys, all requests but probes and `/` need one."""

import structlog
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from chatrpc_process.access.keys import Key, KeyRing
from chatrpc_process.access.quotas import Quotas
from chatrpc_process.access.secret import sent_secret
from chatrpc_process.files.watched import Watched
from gateway_http.auth.caller import Caller
from gateway_http.endpoints import ENDPOINTS
from gateway_http.protocol.error import ApiError

_OPEN = {path for endpoint in ENDPOINTS if not endpoint.needs_key for path in endpoint.paths}


class Authentication:
    """ASGI middleware inside `Access`. It puts the `caller` into the request's state.

    Args:
        keys: The keys that are accepted; None: no key is needed.
    """

    def __init__(self, app: ASGIApp, keys: Watched[KeyRing] | None) -> None:
        self._app = app
        self._keys = keys
        self._quotas = Quotas()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            key = None
            # A pipelined request begins in the context of the one before.
            structlog.contextvars.unbind_contextvars("key")
            if self._keys is not None and scope["path"] not in _OPEN:
                key = _authenticate(Headers(scope=scope), self._keys.value)
                structlog.contextvars.bind_contextvars(key=key.name)
            caller = Caller(key, self._quotas)
            scope["state"]["caller"] = scope["state"]["exchange"].caller = caller
        await self._app(scope, receive, send)


def _authenticate(headers: Headers, keys: KeyRing) -> Key:
    """Return the request's key, or raise ApiError.

    https://www.rfc-editor.org/rfc/rfc6750#section-3 says what the rejection contains.
    """
    secret = sent_secret(headers.items())
    key = None if secret is None else keys.find(secret)
    if key is not None:
        return key
    if secret is None:
        words = "An API key is required: Authorization: Bearer KEY."
        challenge = 'Bearer realm="chatrpc"'
    else:
        words = "The API key is not known here."
        challenge = 'Bearer realm="chatrpc", error="invalid_token"'
    raise ApiError(401, words, code="invalid_api_key", headers={"www-authenticate": challenge})
