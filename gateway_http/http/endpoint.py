"""An endpoint of the HTTP API: its path, its types, and the function that handles it."""

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from gateway_http.http.api_style import OPENAI, ApiStyle

Handler = Callable[[Request], Awaitable[Response]] | ASGIApp
"""A function from a request to its response, or an ASGI application."""

UNMATCHED = "unmatched"
"""The label, in metrics and logs, of requests whose path belongs to no endpoint."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """An endpoint.

    Attributes:
        handler: Handles requests on the port of the API.
        admin_handler: Handles requests on the admin port; None if it is not served there.
        response: The type of a JSON response, or the media type of another one.
        body: The type of the request's JSON body; None if it has none.
        events: The types of the events of a streamed response; empty if it is never streamed.
        errors: The error statuses that it may respond with.
        is_probe: True if monitoring calls it every few seconds. Its requests are counted
            separately, and logged at debug level only.
        is_public: True if it needs no API key.
        style: The form of its errors and streams.
    """

    name: str
    method: Literal["GET", "POST", "DELETE"]
    path: str
    summary: str
    tag: str
    handler: Handler
    response: type[Struct] | str
    body: type[Struct] | None = None
    events: tuple[type[Struct], ...] = ()
    errors: tuple[int, ...]
    admin_handler: Handler | None = None
    is_probe: bool = False
    is_public: bool = False
    style: ApiStyle = OPENAI

    @property
    def needs_key(self) -> bool:
        """True if a gateway with API keys requires one."""
        return not self.is_public

    @property
    def paths(self) -> tuple[str, str]:
        """The path with and without `/v1`: some clients have a base URL that lacks the `/v1`."""
        return "/v1" + self.path.rstrip("/"), self.path


class PathLabels:
    """Maps the path of a request to its label in logs and metrics, of which there are few.

    Attributes:
        probes: The labels of endpoints that are probes.
        styles: The styles of endpoints by label.
    """

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self._paths = frozenset(path for endpoint in endpoints for path in endpoint.paths)
        # The parts before and after a parameter, and the path. Longer parts after it come first.
        self._patterns = sorted(
            ((*re.split(r"{\w+}", path), path) for path in self._paths if "{" in path),
            key=lambda parts: -len(parts[1]),
        )
        self.probes = frozenset(
            path for endpoint in endpoints if endpoint.is_probe for path in endpoint.paths
        )
        self.styles = {path: endpoint.style for endpoint in endpoints for path in endpoint.paths}

    def of(self, path: str) -> str:
        """Return the path of the endpoint that serves `path`, or `UNMATCHED`."""
        if path in self._paths:
            return path
        for before, after, pattern in self._patterns:
            is_filled = len(path) > len(before) + len(after)
            if is_filled and path.startswith(before) and path.endswith(after):
                return pattern
        return UNMATCHED
