"""Authentication by API key."""

import time
from collections.abc import Callable, Collection

import structlog
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from chatrpc_process.access.keys import Key, KeyRing
from chatrpc_process.access.quotas import Quotas
from chatrpc_process.access.secret import sent_secret
from chatrpc_process.files.watched import Watched
from gateway_http.auth.caller import Caller
from gateway_http.protocol.error import ApiError


class Authentication:
    """ASGI middleware that puts the `caller` of a request into the request's state.

    Args:
        keys: The keys that are accepted; None if no key is needed.
        public_paths: The paths that need no key.
        clock: Returns seconds since an arbitrary time; limits per minute are measured by it.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Watched[KeyRing] | None,
        public_paths: Collection[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._keys = keys
        self._public_paths = public_paths
        self._quotas = Quotas(clock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            key = None
            # A pipelined request begins in the context of the previous request.
            structlog.contextvars.unbind_contextvars("key")
            if self._keys is not None and scope["path"] not in self._public_paths:
                key = _authenticate(Headers(scope=scope), self._keys.value)
                structlog.contextvars.bind_contextvars(key=key.name)
            scope["state"]["caller"] = Caller(key, self._quotas)
        await self._app(scope, receive, send)


def _authenticate(headers: Headers, keys: KeyRing) -> Key:
    """Return the request's key.

    If there is none: https://www.rfc-editor.org/rfc/rfc6750#section-3 defines the response.

    Raises:
        ApiError: The request has no key, or an unknown one.
    """
    secret = sent_secret(headers.items())
    key = None if secret is None else keys.find(secret)
    if key is not None:
        return key
    if secret is None:
        message = "An API key is required: Authorization: Bearer KEY."
        challenge = 'Bearer realm="chatrpc"'
    else:
        message = "The API key is not known here."
        challenge = 'Bearer realm="chatrpc", error="invalid_token"'
    raise ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": challenge})
