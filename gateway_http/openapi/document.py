"""The OpenAPI 3.1 document, made from the table of endpoints and the structs that it names."""

import re
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from typing import Any

import msgspec

from gateway_http.http.endpoint import Endpoint
from gateway_http.openapi.fields import FIELDS, LIMITS
from gateway_http.protocol import completion, request, tokens
from gateway_http.protocol.error import ErrorBody

_REF = "#/components/schemas/{name}"
_Schema = dict[str, Any]

_DESCRIPTION = """\
OpenAI's API over a chatrpc service. Every path stands under `/v1` and bare. `null` is the same as
absent for every optional field; a field that is not described here is refused by its name, never
ignored. Errors are OpenAI's error objects, whatever goes wrong. Bodies are JSON in UTF-8, as it is
or compressed (`Content-Encoding`: gzip, deflate or zstd), of at most 100 000 keys and values."""

# Known to the gateway and refused by name: a document of what is served leaves them out.
_REFUSED: dict[type[msgspec.Struct], tuple[str, ...]] = {
    request.ChatCompletionRequest: request.UNSUPPORTED,
    completion.CompletionRequest: completion.UNSUPPORTED,
    tokens.TokenizeRequest: ("chat_template", "tools", "mm_processor_kwargs"),
}

_HEADERS = {
    "x-request-id": {
        "description": "The request's id: the client's own, or a new one. The logs have it too.",
        "schema": {"type": "string"},
    },
    "openai-processing-ms": {
        "description": "Milliseconds to the first byte of the answer.",
        "schema": {"type": "string", "pattern": "^[0-9]+$"},
    },
}
_RETRY_AFTER = {
    "description": "Seconds to wait before another try.",
    "schema": {"type": "string", "pattern": "^[0-9]+$"},
}
_LIMITS = {
    f"x-ratelimit-{part}-{what}": {
        "description": f"{words} {what}; left out where the caller's key has no such limit.",
        "schema": {"type": "string"},
    }
    for what in ("requests", "tokens")
    for part, words in (
        ("limit", "What a minute allows of"),
        ("remaining", "What is left of"),
        ("reset", "How long until all is there again of"),
    )
}
_SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
_STATUS_WORDS = {
    400: "The request is malformed, or asks for what is not served; `param` says where.",
    401: "An API key is asked for, and there is none or it is not known.",
    403: "The API key is not for this model, or the Host header has a name that is not allowed.",
    404: "There is no such model.",
    408: "The head or the body of the request took too long to arrive.",
    413: "The body is larger than the gateway reads.",
    415: "The content type is not application/json in UTF-8, or the content encoding is unknown.",
    417: "The Expect header asks for what is not offered.",
    429: "A limit is exceeded.",
    431: "The head of the request is too large.",
    500: "The server had an error.",
    503: "The service is full, is starting or cannot be reached.",
    504: "The request took longer than it may.",
}


def document(endpoints: Sequence[Endpoint], version: str) -> _Schema:
    """Return the document of these endpoints."""
    schemas = _schemas(endpoints)
    return {
        "openapi": "3.1.0",
        "info": {"title": "chatrpc", "version": version, "description": _DESCRIPTION},
        "servers": [{"url": "/v1"}, {"url": "/"}],
        "paths": {endpoint.path: _path(endpoint) for endpoint in endpoints},
        # A gateway without a file of keys, before a service without one, asks for nothing.
        "security": [{}, *({name: []} for name in _SECURITY)],
        "components": {"schemas": schemas, "securitySchemes": _SECURITY},
    }


def _path(endpoint: Endpoint) -> _Schema:
    operation: _Schema = {
        "operationId": endpoint.name,
        "summary": endpoint.summary,
        "tags": [endpoint.tag],
        "responses": {"200": _success(endpoint)}
        | {str(status): _failure(status) for status in sorted(endpoint.errors)},
    }
    if not endpoint.needs_key:
        operation["security"] = []
    if endpoint.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _ref(endpoint.body)}},
        }
    path: _Schema = {endpoint.method.lower(): operation}
    if names := re.findall(r"{(\w+)}", endpoint.path):
        path["parameters"] = [_parameter(name) for name in names]
    return path


def _parameter(name: str) -> _Schema:
    schema = {"type": "string", "minLength": 1}
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _success(endpoint: Endpoint) -> _Schema:
    if isinstance(endpoint.response, str):
        content: _Schema = {endpoint.response: {}}
    else:
        content = {"application/json": {"schema": _ref(endpoint.response)}}
    if endpoint.event is not None:
        content["text/event-stream"] = {
            "schema": {
                "type": "string",
                "description": "With `stream`: events `data: {...}`, `data: [DONE]` the last. What "
                "fails after the first is an event with an error object.",
            },
            "x-event-schema": _ref(endpoint.event),
        }
    headers = _HEADERS | (_LIMITS if endpoint.event is not None else {})
    return {"description": "Success.", "headers": headers, "content": content}


def _failure(status: int) -> _Schema:
    # What never reached the application has no id.
    headers = {} if status in {400, 408, 431, 503} else dict(_HEADERS)
    if status in {429, 503}:
        headers["retry-after"] = _RETRY_AFTER
    return {
        "description": f"{HTTPStatus(status).phrase}. {_STATUS_WORDS[status]}",
        "headers": headers,
        "content": {"application/json": {"schema": _ref(ErrorBody)}},
    }


def _schemas(endpoints: Sequence[Endpoint]) -> _Schema:
    """Every struct that the table names, and those within them."""
    types = [*dict.fromkeys((ErrorBody, *_types(endpoints)))]
    _, schemas = msgspec.json.schema_components(types, ref_template=_REF)
    for kind, names in _REFUSED.items():
        for name in names:
            del schemas[kind.__name__]["properties"][name]
    for endpoint in endpoints:
        if endpoint.body is not None:
            _describe(endpoint.body.__name__, schemas[endpoint.body.__name__])
    text = msgspec.json.encode(schemas).decode()
    # Two structs of one name are told apart by their modules.
    text = re.sub(r"gateway_http\.protocol\.(\w+)\.(\w+)", lambda m: m[1].capitalize() + m[2], text)
    named: _Schema = msgspec.json.decode(text)
    return dict(sorted(named.items()))


def _types(endpoints: Sequence[Endpoint]) -> Iterator[type[msgspec.Struct]]:
    for endpoint in endpoints:
        for kind in (endpoint.body, endpoint.event, endpoint.response):
            if kind is not None and not isinstance(kind, str):
                yield kind


def _describe(struct: str, schema: _Schema) -> None:
    for name, field in schema["properties"].items():
        described = FIELDS[name]
        limits = LIMITS.get((struct, name), described.limits)
        if "anyOf" in limits:
            field.clear()
            field.update(limits)
        elif limits:
            _limited(field).update(limits)
        field["description"] = described.text
        field.pop("default", None)  # null, which is the same as absent


def _limited(field: _Schema) -> _Schema:
    """The part of a field's schema that is not about null."""
    kinds: list[_Schema] = field.get("anyOf", [field])
    return next(kind for kind in kinds if kind.get("type") != "null")


def _ref(kind: type[msgspec.Struct]) -> _Schema:
    return {"$ref": _REF.format(name=kind.__name__)}
