"""The OpenAPI document says what is served: no more, no less."""

import re
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from chatrpc.v1 import chat_pb2
from gateway_http.app import build_app
from gateway_http.config import Settings
from gateway_http.endpoints import ENDPOINTS
from gateway_http.openapi.document import document
from gateway_http.openapi.fields import FIELDS
from service.domain.sampling import SamplingParams
from service.errors import InvalidField
from service.rpc.decode.sampling import sampling_params

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


def test_every_route_is_described_under_both_servers_and_nothing_else_is() -> None:
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


def test_every_reference_leads_somewhere_and_every_schema_is_used() -> None:
    prefix = "#/components/schemas/"
    assert references(DOCUMENT) == {prefix + name for name in SCHEMAS}
    assert all(re.fullmatch(r"[A-Za-z]+", name) for name in SCHEMAS)


def test_every_field_of_a_body_is_described_and_no_other() -> None:
    fields = {name for body in BODIES for name in SCHEMAS[body]["properties"]}
    assert fields == FIELDS.keys()
    for body in BODIES:
        assert all(field["description"] for field in SCHEMAS[body]["properties"].values())


@pytest.mark.parametrize("body", BODIES)
def test_what_is_refused_by_name_is_not_described(body: str) -> None:
    schema = SCHEMAS[body]
    assert schema["additionalProperties"] is False
    assert not {"functions", "guided_json", "chat_template"} & schema["properties"].keys()


@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p"])
def test_limits_are_those_of_the_service(name: str) -> None:
    limits = FIELDS[name].limits
    for value in (limits["minimum"], limits["maximum"]):
        sampling_params(chat_pb2.SamplingParams(**{name: value}), SamplingParams(), 100)
    for value in (limits["minimum"] - 0.01, limits["maximum"] + 0.01):
        wrong = chat_pb2.SamplingParams(**{name: value})
        with pytest.raises(InvalidField):
            sampling_params(wrong, SamplingParams(), 100)


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_document_and_page_are_served(http: httpx.AsyncClient, prefix: str) -> None:
    answer = await http.get(f"{prefix}/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["components"] == DOCUMENT["components"]
    page = await http.get(f"{prefix}/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert 'fetch("openapi.json")' in page.text


async def test_the_page_asks_nobody_else(http: httpx.AsyncClient) -> None:
    page = await http.get("/docs")
    assert not re.search(r"https?://|src=|@import|url\(", page.text)
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "connect-src 'self'" in policy
