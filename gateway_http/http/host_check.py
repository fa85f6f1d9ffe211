"""A check of the `Host` header, against DNS rebinding.

The page of any site can let its own name resolve to 127.0.0.1. The browser then treats requests
to the gateway as requests to the same origin, so the page can read the responses. Only the `Host`
header shows the difference.
"""

import ipaddress
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway_http.protocol.error import ApiError


class HostCheck:
    """ASGI middleware that rejects requests for names of other sites with 403.

    `localhost`, its subdomains and IP addresses are always allowed: no site can have these names.

    Args:
        allowed_hosts: Further allowed names, without ports; `*` allows any.
    """

    def __init__(self, app: ASGIApp, allowed_hosts: Collection[str]) -> None:
        self._app = app
        self._allowed = {name.lower() for name in allowed_hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self._check(Headers(scope=scope).get("host", ""))
        await self._app(scope, receive, send)

    def _check(self, host: str) -> None:
        name = host_name(host)
        if not name or "*" in self._allowed or name in self._allowed or is_local(name):
            return
        raise ApiError(
            403,
            "The Host header has a name that is not allowed here. Use localhost or an IP address, "
            "or start the gateway with --allowed-hosts.",
            code="host_not_allowed",
        )


def host_name(host: str) -> str:
    """Return the name or address in a `Host` header, such as `::1` for `[::1]:8000`."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".").lower()


def is_local(name: str) -> bool:
    """Return whether a host is an IP address, `localhost` or one of its subdomains."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
