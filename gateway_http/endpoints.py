"""What is served, as one table: the routes and the OpenAPI document are both made from it."""

from dataclasses import dataclass
from typing import Literal

from msgspec import Struct

from gateway_http.protocol import completion, request, response, tokens

# What any request may be answered with: its head is invalid, too large or too slow, its host is not
# allowed, there are too many connections, or nobody foresaw what happened.
_ANY = (400, 403, 408, 417, 431, 500, 503)
# What goes with a call to the service, besides: its statuses, and those of what stands before it.
_CALL = (*_ANY, 401, 429, 504)
_BODY = (413, 415)


@dataclass(frozen=True)
class Endpoint:
    """`answer` is a type of JSON or a media type; `event` what a stream's events hold."""

    name: str
    method: Literal["GET", "POST"]
    path: str
    summary: str
    tag: str
    answer: type[Struct] | str
    body: type[Struct] | None = None
    event: type[Struct] | None = None
    errors: tuple[int, ...] = (*_ANY, 401)
    is_probe: bool = False  # health
    is_public: bool = False

    @property
    def needs_key(self) -> bool:
        """Whether a gateway with keys asks for one."""
        return not (self.is_probe or self.is_public)

    @property
    def paths(self) -> tuple[str, str]:
        """Where it stands: bare as well, since some clients' base URL lacks the `/v1`."""
        return "/v1" + self.path.rstrip("/"), self.path


UNMATCHED = "unmatched"  # what a request counts as that is for none of the endpoints

ENDPOINTS = (
    Endpoint(
        "create_chat_completion",
        "POST",
        "/chat/completions",
        "Answer a conversation.",
        "Generate",
        response.ChatCompletion,
        request.ChatCompletionRequest,
        response.ChatCompletionChunk,
        (*_CALL, *_BODY, 404),
    ),
    Endpoint(
        "create_completion",
        "POST",
        "/completions",
        "Continue prompts as they stand, or score them.",
        "Generate",
        completion.Completion,
        completion.CompletionRequest,
        completion.Completion,
        (*_CALL, *_BODY, 404),
    ),
    Endpoint(
        "list_models",
        "GET",
        "/models",
        "The models served.",
        "Models",
        response.ModelList,
        errors=_CALL,
    ),
    Endpoint(
        "retrieve_model",
        "GET",
        "/models/{model_id}",
        "One model, by id or alias; a slash in it may stand as it is or as %2F.",
        "Models",
        response.Model,
        errors=(*_CALL, 404),
    ),
    Endpoint(
        "tokenize",
        "POST",
        "/tokenize",
        "A text, or a conversation through the chat template, as token ids.",
        "Tokens",
        tokens.TokenizeAnswer,
        tokens.TokenizeRequest,
        errors=(*_CALL, *_BODY, 404),
    ),
    Endpoint(
        "detokenize",
        "POST",
        "/detokenize",
        "Token ids as text.",
        "Tokens",
        tokens.DetokenizeAnswer,
        tokens.DetokenizeRequest,
        errors=(*_CALL, *_BODY, 404),
    ),
    *(
        Endpoint(
            name,
            "GET",
            f"/{name}",
            "Whether requests are taken: the service is reached and ready.",
            "Operate",
            "text/plain",
            errors=_ANY,
            is_probe=True,
        )
        for name in ("readyz", "ready", "health", "ping")
    ),
    *(
        Endpoint(
            name,
            "GET",
            f"/{name}",
            "Whether the gateway runs at all.",
            "Operate",
            "text/plain",
            errors=_ANY,
            is_probe=True,
        )
        for name in ("healthz", "live")
    ),
    Endpoint(
        "metrics",
        "GET",
        "/metrics",
        "Counters, for Prometheus. With an admin port they are served only there; with keys they "
        "need one that may use all models.",
        "Operate",
        "text/plain",
        errors=(*_ANY, 401, 404),
    ),
    Endpoint(
        "index",
        "GET",
        "/",
        "What this server is, as JSON or as a page. It needs no key.",
        "Operate",
        "application/json",
        errors=_ANY,
        is_public=True,
    ),
    Endpoint("version", "GET", "/version", "The gateway's version.", "Operate", response.Version),
    Endpoint("openapi", "GET", "/openapi.json", "This document.", "Operate", "application/json"),
    Endpoint("docs", "GET", "/docs", "This document as a page.", "Operate", "text/html"),
)

_PATHS = {path for endpoint in ENDPOINTS for path in endpoint.paths}
# From what stands before a parameter, which is the last part of a path, to the whole pattern.
_PREFIXES = {path.partition("{")[0]: path for path in _PATHS if "{" in path}


def route_of(path: str) -> str:
    """Return the pattern of the endpoint at a path: what clients make up becomes no label."""
    if path in _PATHS:
        return path
    for prefix, pattern in _PREFIXES.items():
        if path.startswith(prefix) and path != prefix:
            return pattern
    return UNMATCHED
