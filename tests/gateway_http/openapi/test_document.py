"""The OpenAPI document describes the API completely and exactly."""

import re
from typing import Any

import httpx
import msgspec
import pytest
from starlette.routing import Route

from chatrpc.v1.comments import COMMENTS
from gateway_http.app import build_app
from gateway_http.config import Settings
from gateway_http.endpoints import ENDPOINTS
from gateway_http.openapi.document import document
from gateway_http.openapi.fields import fields_of

DOCUMENT = document(ENDPOINTS, "1.0")
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
BODIES = [endpoint.body.__name__ for endpoint in ENDPOINTS if endpoint.body]


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        found = {value["$ref"]} if "$ref" in value else set()
        return found.union(*map(references, value.values()))
    if isinstance(value, list):
        return set().union(*map(references, value))
    return set()


def test_described_paths_are_the_served_routes() -> None:
    served = {
        (method, route.path.replace(":path}", "}"))
        for route in build_app(Settings()).routes
        if isinstance(route, Route) and route.methods
        for method in route.methods - {"HEAD"}
    }
    described = {
        (method.upper(), (server["url"].rstrip("/") + path).rstrip("/") or "/")
        for path, methods in DOCUMENT["paths"].items()
        for method in methods
        if method != "parameters"
        for server in DOCUMENT["servers"]
    }
    assert described == served


def test_references_and_schemas_are_the_same_set() -> None:
    prefix = "#/components/schemas/"
    assert references(DOCUMENT) == {prefix + name for name in SCHEMAS}
    assert all(re.fullmatch(r"[A-Za-z]+", name) for name in SCHEMAS)


def test_every_schema_and_every_field_is_described() -> None:
    for name, schema in SCHEMAS.items():
        assert schema["description"], name
        for field, described in schema["properties"].items():
            assert described["description"].endswith("."), f"{name}.{field}"


def test_field_has_the_comment_of_its_proto_field_and_its_note() -> None:
    properties = SCHEMAS["ChatCompletionRequest"]["properties"]
    assert properties["temperature"]["description"] == COMMENTS["SamplingParams.temperature"]
    comment = COMMENTS["SamplingParams.top_k"]
    assert properties["top_k"]["description"] == f"{comment} -1 is no limit, too."


def test_field_without_proto_field_and_note_is_an_error() -> None:
    class Unknown(msgspec.Struct):
        unheard_of: int

    with pytest.raises(KeyError, match=r"Unknown\.unheard_of"):
        fields_of(Unknown)


@pytest.mark.parametrize("body", BODIES)
def test_rejected_fields_are_not_described(body: str) -> None:
    schema = SCHEMAS[body]
    assert schema["additionalProperties"] is False
    assert not {"functions", "guided_json", "chat_template"} & schema["properties"].keys()


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_document_and_page_are_served(http: httpx.AsyncClient, prefix: str) -> None:
    answer = await http.get(f"{prefix}/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["components"] == DOCUMENT["components"]
    page = await http.get(f"{prefix}/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert 'fetch("openapi.json")' in page.text


async def test_page_loads_nothing_from_other_hosts(http: httpx.AsyncClient) -> None:
    page = await http.get("/docs")
    assert not re.search(r"https?://|src=|@import|url\(", page.text)
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "connect-src 'self'" in policy
