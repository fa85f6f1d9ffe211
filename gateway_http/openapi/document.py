"""Makes the OpenAPI 3.1 document from the table of endpoints and the structs that it names."""

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import msgspec

from chatrpc.v1.limits import LIMITS, REQUEST_ID_PATTERN, Limits
from gateway_http.http.endpoint import Endpoint
from gateway_http.openapi.fields import fields_of, structs_within
from gateway_http.protocol.classification import ClassifyRequest
from gateway_http.protocol.completion import CompletionRequest
from gateway_http.protocol.elements import MAX_ELEMENTS
from gateway_http.protocol.embeddings import EmbeddingsRequest
from gateway_http.protocol.error import ErrorBody
from gateway_http.protocol.request import ChatCompletionRequest

_REF = "#/components/schemas/{name}"
_Schema = dict[str, Any]

_DESCRIPTION = f"""\
OpenAI's API and Anthropic's Messages API over a chatrpc service. Every path exists with the prefix
`/v1` and without it. `null` is the same as absent for every optional field. A field that is not
described here is rejected by name, never ignored. Every error is an error object of OpenAI, or of
Anthropic for its paths. Bodies are JSON in UTF-8, plain
or compressed (`Content-Encoding`: gzip, deflate or zstd), of at most {MAX_ELEMENTS:,} keys and
values."""

_HEADERS = {
    "x-request-id": {
        "description": "The request's id, from the client or generated. The logs contain it.",
        "schema": {"type": "string"},
    },
    "openai-processing-ms": {
        "description": "Milliseconds until the first byte of the response.",
        "schema": {"type": "string", "pattern": "^[0-9]+$"},
    },
}
_RETRY_AFTER = {
    "description": "Seconds to wait before a retry.",
    "schema": {"type": "string", "pattern": "^[0-9]+$"},
}
_LIMITS = {
    f"x-ratelimit-{part}-{what}": {
        "description": f"{words.format(what)} Absent if the API key has no such limit.",
        "schema": {"type": "string"},
    }
    for what in ("requests", "tokens")
    for part, words in (
        ("limit", "The number of {} allowed in a minute."),
        ("remaining", "The number of {} that are left."),
        ("reset", "The time until the whole number of {} is available again."),
    )
}
_SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
_STATUS_WORDS = {
    400: "The request is malformed or uses an option that is not served; `param` names the field.",
    401: "The API key is missing or unknown.",
    403: "The API key does not permit the model, or the name in the Host header is not allowed.",
    404: "The model does not exist.",
    408: "The head or the body of the request took too long to arrive.",
    413: "The body is larger than the gateway accepts.",
    415: "The content type is not application/json in UTF-8, or the content encoding is unknown.",
    417: "The value of the Expect header is not supported.",
    429: "A limit is exceeded.",
    431: "The head of the request is too large.",
    500: "The server had an error.",
    503: "The service is overloaded, is starting or cannot be reached.",
    504: "The request exceeded its time limit.",
}

# Statuses that a request may get before it reaches the application.
_ANY_PATH = frozenset({400, 408, 431, 503})

_TOKEN_IDS: _Schema = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "maximum": 2**32 - 1},
    "minItems": LIMITS["TokenIds.ids"].min_size,
}


def _texts_or_token_ids(limits: Limits) -> _Schema:
    """Return the schema of texts or token ids: one text, several, or the token ids of these."""
    each = limits.element or Limits()
    text: _Schema = {"type": "string"}
    if each.min_size:
        text["minLength"] = each.min_size
    several: _Schema = {"type": "array", "minItems": limits.min_size, "maxItems": limits.max_size}
    return {"anyOf": [text, several | {"items": text}, _TOKEN_IDS, several | {"items": _TOKEN_IDS}]}


# The pattern lacks the parts that only Python's regular expressions support.
_REQUEST_ID: _Schema = {
    "anyOf": [{"type": "string", "pattern": f"^{REQUEST_ID_PATTERN}$"}, {"type": "null"}]
}
# Schemas that are more precise than the type of the field.
_PRECISE_SCHEMAS: dict[tuple[type[msgspec.Struct], str], _Schema] = {
    (CompletionRequest, "prompt"): _texts_or_token_ids(LIMITS["CompletionParams.prompts"]),
    (EmbeddingsRequest, "input"): _texts_or_token_ids(LIMITS["TextInputs.texts"]),
    (ClassifyRequest, "input"): _texts_or_token_ids(LIMITS["TextInputs.texts"]),
    (ChatCompletionRequest, "request_id"): _REQUEST_ID,
    (CompletionRequest, "request_id"): _REQUEST_ID,
}


def document(endpoints: Sequence[Endpoint], version: str) -> _Schema:
    """Return the document of these endpoints as JSON values."""
    schemas = _schemas(endpoints)
    paths: dict[str, _Schema] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {}).update(_path(endpoint))
    return {
        "openapi": "3.1.0",
        "info": {"title": "chatrpc", "version": version, "description": _DESCRIPTION},
        "servers": [{"url": "/v1"}, {"url": "/"}],
        "paths": paths,
        # A key is optional if neither the gateway nor the service has a file of keys.
        "security": [{}, *({name: []} for name in _SECURITY)],
        "components": {"schemas": schemas, "securitySchemes": _SECURITY},
    }


def _path(endpoint: Endpoint) -> _Schema:
    operation: _Schema = {
        "operationId": endpoint.name,
        "summary": endpoint.summary,
        "tags": [endpoint.tag],
        "responses": {"200": _success(endpoint)}
        | {str(status): _failure(status, endpoint) for status in sorted(endpoint.errors)},
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
    if endpoint.events:
        content["text/event-stream"] = {
            "schema": {"type": "string", "description": endpoint.style.stream_description},
            "x-event-schema": _any_of(endpoint.events),
        }
    headers = _HEADERS | (_LIMITS if endpoint.events else {})
    return {"description": "Success.", "headers": headers, "content": content}


def _failure(status: int, endpoint: Endpoint) -> _Schema:
    # A request that is rejected before it reaches the application has no id.
    headers = {} if status in _ANY_PATH else dict(_HEADERS)
    if status in {429, 503}:
        headers["retry-after"] = _RETRY_AFTER
    return {
        "description": f"{HTTPStatus(status).phrase}. {_STATUS_WORDS[status]}",
        "headers": headers,
        "content": {"application/json": {"schema": _error(status, endpoint)}},
    }


def _error(status: int, endpoint: Endpoint) -> _Schema:
    """Return the schema of an error. One that is found before the path is known is OpenAI's."""
    kinds: list[type[msgspec.Struct]] = [endpoint.style.error_type]
    if status in _ANY_PATH:
        kinds.append(ErrorBody)
    return _any_of(list(dict.fromkeys(kinds)))


def _schemas(endpoints: Sequence[Endpoint]) -> _Schema:
    """Return the schemas of the structs of these endpoints, and of those within them, by name."""
    roots = _types(endpoints)
    _, schemas = msgspec.json.schema_components(roots, ref_template=_REF)
    bodies = {endpoint.body for endpoint in endpoints}
    for struct in structs_within(roots):
        # msgspec names structs that have the same name by their modules, too.
        full_name = f"{struct.__module__}.{struct.__qualname__}"
        schema = schemas[full_name if full_name in schemas else struct.__name__]
        _describe(struct, schema, is_body=struct in bodies)
    text = msgspec.json.encode(schemas).decode()
    text = re.sub(r"gateway_http\.protocol\.(\w+)\.(\w+)", lambda m: m[1].capitalize() + m[2], text)
    named: _Schema = msgspec.json.decode(text)
    return dict(sorted(named.items()))


def _types(endpoints: Sequence[Endpoint]) -> list[type[msgspec.Struct]]:
    """Return the structs that the endpoints name, and those of errors."""
    types: list[type[msgspec.Struct]] = []
    for endpoint in endpoints:
        for kind in (
            endpoint.style.error_type,
            endpoint.body,
            *endpoint.events,
            endpoint.response,
        ):
            if kind is not None and not isinstance(kind, str) and kind not in types:
                types.append(kind)
    return types


def _describe(struct: type[msgspec.Struct], schema: _Schema, *, is_body: bool) -> None:
    """Add descriptions and limits to the schema of a struct, and remove rejected fields from it."""
    properties = schema["properties"]
    if tag_field := struct.__struct_config__.tag_field:
        properties[tag_field]["description"] = "The kind of the object."
    for name, field in fields_of(struct).items():
        if field.is_rejected:
            del properties[name]
            continue
        if is_body:
            properties[name].pop("default", None)  # the default, null, means absent
        if (struct, name) in _PRECISE_SCHEMAS:
            properties[name] = dict(_PRECISE_SCHEMAS[struct, name])
        else:
            for proto_field in field.proto_fields:
                _limit(properties[name], LIMITS.get(proto_field, Limits()))
        properties[name]["description"] = field.description


def _limit(schema: _Schema, limits: Limits) -> None:
    """Add the limits of a proto field to the schema of its HTTP field."""
    branches: list[_Schema] = schema.get("anyOf", [schema])
    has_list = any(branch.get("type") == "array" for branch in branches)
    for branch in branches:
        match branch.get("type"):
            case "integer" | "number":
                _limit_number(branch, limits)
            case "string":  # beside a list, a string means a list of one
                own = limits.element or Limits() if has_list else limits
                _limit_size(branch, own, "minLength", "maxLength")
            case "array":
                _limit_size(branch, limits, "minItems", "maxItems")
                _limit(branch.get("items", {}), limits.element or Limits())
            case "object" if limits.element is not None:  # a map, not JSON sent as text
                _limit_size(branch, limits, "minProperties", "maxProperties")
                _limit(branch["additionalProperties"], limits.element)
                if limits.key is not None:
                    branch["propertyNames"] = {"maxLength": limits.key.max_size}


def _limit_number(schema: _Schema, limits: Limits) -> None:
    unlimited = Limits()
    # Over HTTP, -1 is allowed and has a special meaning.
    if limits.minimum != unlimited.minimum and schema.get("minimum") != -1:
        schema["minimum"] = limits.minimum
    if limits.above != unlimited.above:
        schema.pop("minimum", None)
        schema["exclusiveMinimum"] = limits.above
    if limits.maximum != unlimited.maximum:
        schema["maximum"] = limits.maximum


def _limit_size(schema: _Schema, limits: Limits, least: str, most: str) -> None:
    unlimited = Limits()
    if limits.min_size != unlimited.min_size:
        schema[least] = limits.min_size
    if limits.max_size != unlimited.max_size:
        schema[most] = limits.max_size


def _any_of(kinds: Sequence[type[msgspec.Struct]]) -> _Schema:
    refs = [_ref(kind) for kind in kinds]
    return refs[0] if len(refs) == 1 else {"anyOf": refs}


def _ref(kind: type[msgspec.Struct]) -> _Schema:
    return {"$ref": _REF.format(name=kind.__name__)}
