"""POST /v1/embeddings, with httpx and with the OpenAI client."""

import base64
import struct
from pathlib import Path
from typing import Any

import grpc
import httpx
import openai
import pytest

from chatrpc.v1 import embedding_service_pb2
from chatrpc_process.access.secret import digest_of
from tests.fakes.chat_service import MODEL, Fail, FakeService
from tests.fakes.embeddings import vector_of
from tests.support.api_keys import SECRET
from tests.support.gateway import metric, serving


def body(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "input": "abc"} | fields


async def error_of(http: httpx.AsyncClient, **fields: Any) -> tuple[int, Any]:
    response = await http.post("/v1/embeddings", json=body(**fields))
    return response.status_code, response.json()["error"]


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings"])
async def test_text_has_an_embedding(http: httpx.AsyncClient, path: str) -> None:
    response = await http.post(path, json=body())
    assert response.json() == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": vector_of(3)}],
        "model": MODEL,
        "usage": {"prompt_tokens": 3, "total_tokens": 3},
    }


@pytest.mark.parametrize(
    ("given", "texts", "token_ids"),
    [
        ("abc", ["abc"], []),
        (["a", "bc"], ["a", "bc"], []),
        ([1, 2, 3], [], [[1, 2, 3]]),
        ([[1], [2, 3]], [], [[1], [2, 3]]),
    ],
)
async def test_every_form_of_input_reaches_the_service(
    http: httpx.AsyncClient,
    service: FakeService,
    given: Any,
    texts: list[str],
    token_ids: list[list[int]],
) -> None:
    response = await http.post("/v1/embeddings", json=body(input=given, user="me"))
    request: embedding_service_pb2.CreateEmbeddingsRequest = service.calls[0].params
    assert list(request.text_inputs.texts) == texts
    assert [list(each.ids) for each in request.token_inputs.token_ids] == token_ids
    assert (request.model, request.user) == (MODEL, "me")
    expected = [vector_of(len(each)) for each in (texts or token_ids)]
    assert [each["embedding"] for each in response.json()["data"]] == expected


async def test_base64_has_floats_of_32_bits(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/embeddings", json=body(encoding_format="base64", dimensions=5))
    packed = base64.b64decode(response.json()["data"][0]["embedding"])
    assert list(struct.unpack("<5f", packed)) == vector_of(3, 5)


@pytest.mark.parametrize("fields", [{}, {"encoding_format": "float"}])
async def test_openai_client_reads_embeddings(url: str, fields: dict[str, Any]) -> None:
    """Without an encoding format, the client asks for base64 and decodes it."""
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        created = await client.embeddings.create(
            model=MODEL, input=["a", "bc"], dimensions=2, **fields
        )
    assert [each.embedding for each in created.data] == [vector_of(1, 2), vector_of(2, 2)]
    assert [each.index for each in created.data] == [0, 1]
    assert (created.model, created.usage.prompt_tokens) == (MODEL, 3)


@pytest.mark.parametrize("name", ["prompt_name", "input_type"])
async def test_options_of_other_servers_reach_the_service(
    http: httpx.AsyncClient, service: FakeService, name: str
) -> None:
    fields = {name: "query", "normalize": False, "add_special_tokens": False, "priority": 2}
    response = await http.post("/v1/embeddings", json=body(**fields))
    assert response.status_code == 200
    request: embedding_service_pb2.CreateEmbeddingsRequest = service.calls[0].params
    assert (request.prompt_name, request.priority) == ("query", 2)
    assert request.HasField("normalize")
    assert request.HasField("add_special_tokens")
    assert not request.normalize
    assert not request.add_special_tokens


async def test_many_embeddings_are_converted_off_the_event_loop(http: httpx.AsyncClient) -> None:
    texts = ["a" * 50] * 2048
    response = await http.post("/v1/embeddings", json=body(input=texts, dimensions=500))
    assert [each["index"] for each in response.json()["data"]] == list(range(2048))
    assert response.json()["data"][-1]["embedding"] == vector_of(50, 500)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"input": None}, "input", "invalid_type"),
        ({"input": []}, "input", "empty_array"),
        ({"input": ["a", 1]}, "input", "invalid_type"),
        ({"input": [1, [2]]}, "input", "invalid_type"),
        ({"input": {"text": "a"}}, "input", "invalid_type"),
        ({"input": [-1]}, "input[0]", "integer_below_min_value"),
        ({"encoding_format": "int8"}, "encoding_format", "invalid_value"),
        ({"dimensions": -1}, "dimensions", "integer_below_min_value"),
        ({"dimensions": "2"}, "dimensions", "invalid_type"),
        ({"embed_dtype": "float16"}, "embed_dtype", "unsupported_parameter"),
        ({"normalize": 1}, "normalize", "invalid_type"),
        ({"mood": 1}, "mood", "unknown_parameter"),
        ({"model": None}, "model", "invalid_type"),
    ],
)
async def test_invalid_parameter_is_named(
    http: httpx.AsyncClient, service: FakeService, fields: dict[str, Any], param: str, code: str
) -> None:
    status, error = await error_of(http, **fields)
    assert (status, error["param"], error["code"]) == (400, param, code)
    assert service.calls == []


@pytest.mark.parametrize(
    ("given", "field", "param"),
    [
        ("abc", "text_inputs.texts[0]", "input"),
        (["abc"], "text_inputs.texts[0]", "input[0]"),
        (["a"], "text_inputs.texts", "input"),
        ([1], "token_inputs.token_ids[0].ids[0]", "input[0]"),
        ([[1], [2]], "token_inputs.token_ids[1].ids[0]", "input[1][0]"),
        ("abc", "dimensions", "dimensions"),
        ("abc", "user", "user"),
    ],
)
async def test_field_in_an_error_of_the_service_has_the_name_of_the_client(
    http: httpx.AsyncClient, service: FakeService, given: Any, field: str, param: str
) -> None:
    code = grpc.StatusCode.INVALID_ARGUMENT
    service.embedding_error = Fail(code, f"{field} is odd.", "INVALID_FIELD", field)
    status, error = await error_of(http, input=given)
    assert (status, error["param"], error["message"]) == (400, param, f"{param} is odd.")


async def test_model_without_embeddings_is_rejected(
    http: httpx.AsyncClient, service: FakeService
) -> None:
    service.embedding_error = Fail(
        grpc.StatusCode.UNIMPLEMENTED, "No embeddings.", "UNSUPPORTED_METHOD"
    )
    status, error = await error_of(http)
    assert (status, error["code"]) == (400, "unsupported_value")
    assert error["message"] == "No embeddings."


async def test_tokens_are_counted_and_logged(http: httpx.AsyncClient) -> None:
    await http.post("/v1/embeddings", json=body())
    labels = {"model": MODEL}
    assert await metric(http, "chatrpc_gateway_prompt_tokens_total", labels) == 3
    route = {"route": "/v1/embeddings", "status": "200"}
    assert await metric(http, "chatrpc_gateway_requests_total", labels | route) == 1


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    path.write_text(
        f'[[key]]\nname = "one"\nsha256 = "{digest_of(SECRET)}"\nmodels = ["org/*"]\n'
        "tokens_per_minute = 100\n"
    )
    return path


async def test_limits_of_a_key_apply(service: FakeService, keys: Path) -> None:
    headers = {"authorization": f"Bearer {SECRET}"}
    async with (
        serving(upstream=service.target, api_keys=keys) as url,
        httpx.AsyncClient(base_url=url, headers=headers) as http,
    ):
        first = await http.post("/v1/embeddings", json=body(input="a" * 60))
        assert first.status_code == 200
        assert first.headers["x-ratelimit-remaining-tokens"] == "40"
        await http.post("/v1/embeddings", json=body(input="a" * 60))
        status, error = await error_of(http, input="a" * 60)
        assert (status, error["code"]) == (429, "rate_limit_exceeded")
        status, error = await error_of(http, input="a" * 10_000)
        assert (status, error["code"], error["param"]) == (400, "request_exceeds_limit", "input")
        status, error = await error_of(http, model="other")
        assert (status, error["code"]) == (403, "permission_denied")
