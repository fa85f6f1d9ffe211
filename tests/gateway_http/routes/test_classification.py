"""POST /v1/rerank, /v2/rerank, /v1/score and /v1/classify."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from chatrpc.v1 import classification_service_pb2, embedding_service_pb2
from tests.fakes.chat_service import MODEL, Fail, FakeService
from tests.support.api_keys import SECRET, key
from tests.support.gateway import metric, serving

DOCUMENTS = ["a", {"text": "ccc", "title": "ignored"}, "bb"]
RERANK: dict[str, Any] = {"model": MODEL, "query": "q", "documents": DOCUMENTS}
SCORE: dict[str, Any] = {"model": MODEL, "text_1": "q", "text_2": ["a", "bb"]}
CLASSIFY: dict[str, Any] = {"model": MODEL, "input": "abc"}
BODIES = {"/v1/rerank": RERANK, "/v1/score": SCORE, "/v1/classify": CLASSIFY}


async def error_of(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    response = await http.post(path, json=body)
    return response.status_code, response.json()["error"]


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/v2/rerank"])
async def test_documents_are_ranked(http: httpx.AsyncClient, path: str) -> None:
    response = (await http.post(path, json=RERANK | {"top_n": 2})).json()

    assert response.pop("id").startswith("rerank-")
    assert response == {
        "model": MODEL,
        "results": [
            {"index": 1, "relevance_score": 3, "document": {"text": "ccc"}},
            {"index": 2, "relevance_score": 2, "document": {"text": "bb"}},
        ],
        "usage": {"prompt_tokens": 6, "total_tokens": 6},
    }


async def test_documents_are_left_out_on_request(http: httpx.AsyncClient) -> None:
    body = RERANK | {"return_documents": False}
    response = (await http.post("/v1/rerank", json=body)).json()

    assert response["results"][0] == {"index": 1, "relevance_score": 3}


async def test_options_of_rerank_reach_the_service(
    http: httpx.AsyncClient, service: FakeService
) -> None:
    body = RERANK | {
        "query": {"text": "q"},
        "max_tokens_per_doc": 7,
        "truncation": True,
        "use_activation": False,
        "priority": 2,
        "user": "me",
    }
    assert (await http.post("/v1/rerank", json=body)).status_code == 200

    request: classification_service_pb2.RerankRequest = service.calls[0].params
    assert (request.model, request.query) == (MODEL, "q")
    assert list(request.documents) == ["a", "ccc", "bb"]
    assert not request.HasField("top_n")
    assert request.max_tokens_per_document == 7
    assert request.HasField("truncation")
    assert not request.truncation.HasField("max_tokens")
    assert request.activation == classification_service_pb2.ACTIVATION_NONE
    assert (request.priority, request.user) == (2, "me")


@pytest.mark.parametrize(
    ("fields", "pairs"),
    [
        ({"text_1": "q", "text_2": "a"}, [("q", "a")]),
        ({"text_1": "q", "text_2": ["a", "b"]}, [("q", "a"), ("q", "b")]),
        ({"text_1": ["q", "r"], "text_2": ["a", "b"]}, [("q", "a"), ("r", "b")]),
        ({"queries": ["q"], "documents": ["a", "b"]}, [("q", "a"), ("q", "b")]),
        ({"queries": "q", "items": ["a"]}, [("q", "a")]),
        ({"data_1": "q", "data_2": "a"}, [("q", "a")]),
    ],
)
@pytest.mark.parametrize("path", ["/v1/score", "/score"])
async def test_every_form_of_pairs_is_scored(
    http: httpx.AsyncClient,
    service: FakeService,
    path: str,
    fields: dict[str, Any],
    pairs: list[tuple[str, str]],
) -> None:
    response = (await http.post(path, json={"model": MODEL} | fields)).json()

    request: classification_service_pb2.ScoreRequest = service.calls[0].params
    assert [(pair.query, pair.document) for pair in request.pairs] == pairs
    assert response["object"] == "list"
    assert response["data"] == [
        {"object": "score", "index": i, "score": 2} for i in range(len(pairs))
    ]
    assert response["usage"]["prompt_tokens"] == 2 * len(pairs)


@pytest.mark.parametrize("path", ["/v1/classify", "/classify"])
@pytest.mark.parametrize(
    ("given", "lengths"),
    [("abc", [3]), (["a", "bb"], [1, 2]), ([1, 2, 3], [3]), ([[1], [2, 3]], [1, 2])],
)
async def test_every_form_of_input_is_classified(
    http: httpx.AsyncClient, path: str, given: Any, lengths: list[int]
) -> None:
    response = (await http.post(path, json=CLASSIFY | {"input": given})).json()

    assert response["labels"] == ["short", "long"]
    assert response["data"] == [
        {"index": i, "label": "short", "probs": [1, length], "num_classes": 2}
        for i, length in enumerate(lengths)
    ]
    assert response["usage"] == {"prompt_tokens": sum(lengths), "total_tokens": sum(lengths)}


LEFT = embedding_service_pb2.TRUNCATION_SIDE_LEFT
RIGHT = embedding_service_pb2.TRUNCATION_SIDE_RIGHT
ANY_SIDE = embedding_service_pb2.TRUNCATION_SIDE_UNSPECIFIED


@pytest.mark.parametrize("path", [*BODIES, "/v1/embeddings"])
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"truncate_prompt_tokens": 5}, (ANY_SIDE, 5)),
        ({"truncate_prompt_tokens": -1}, (ANY_SIDE, None)),
        ({"truncate_prompt_tokens": 5, "truncation_side": "left"}, (LEFT, 5)),
        ({"truncate": "END"}, (RIGHT, None)),
        ({"truncate": "START"}, (LEFT, None)),
        ({"truncate": "NONE"}, None),
    ],
)
async def test_truncation_reaches_the_service(
    http: httpx.AsyncClient,
    service: FakeService,
    path: str,
    fields: dict[str, Any],
    expected: tuple[int, int | None] | None,
) -> None:
    response = await http.post(path, json=BODIES.get(path, CLASSIFY) | fields)

    assert response.status_code == 200
    request = service.calls[0].params
    found = request.truncation
    assert request.HasField("truncation") == (expected is not None)
    if expected is not None:
        assert (found.side, found.max_tokens if found.HasField("max_tokens") else None) == expected


@pytest.mark.parametrize(
    ("path", "fields", "param", "code"),
    [
        ("/v1/rerank", {"documents": []}, "documents", "empty_array"),
        ("/v1/rerank", {"documents": [5]}, "documents[0]", "invalid_type"),
        ("/v1/rerank", {"documents": [{}]}, "documents[0].text", "missing_required_parameter"),
        ("/v1/rerank", {"query": 5}, "query", "invalid_type"),
        ("/v1/rerank", {"rank_fields": ["a"]}, "rank_fields", "unsupported_parameter"),
        ("/v1/rerank", {"max_chunks_per_doc": 1}, "max_chunks_per_doc", "unsupported_parameter"),
        ("/v1/rerank", {"top_k": 1}, "top_k", "unknown_parameter"),
        ("/v1/rerank", {"top_n": -1}, "top_n", "integer_below_min_value"),
        ("/v2/rerank", {"truncate": "MIDDLE"}, "truncate", "invalid_value"),
        (
            "/v1/rerank",
            {"truncate": "END", "truncate_prompt_tokens": 1},
            "truncate",
            "invalid_value",
        ),
        ("/v1/rerank", {"truncation_side": "left"}, "truncation_side", "invalid_value"),
        ("/v1/score", {"text_1": None}, "text_1", "missing_required_parameter"),
        ("/v1/score", {"text_2": None}, "text_2", "missing_required_parameter"),
        ("/v1/score", {"queries": "x"}, "queries", "invalid_value"),
        ("/v1/score", {"documents": "x"}, "documents", "invalid_value"),
        ("/v1/score", {"text_1": ["a", "b", "c"]}, "text_1", "invalid_value"),
        ("/v1/score", {"text_2": []}, "text_2", "empty_array"),
        ("/v1/score", {"text_1": "x" * 9000, "text_2": ["y"] * 1000}, "text_1", "invalid_value"),
        ("/v1/score", {"label_token_ids": [1]}, "label_token_ids", "unsupported_parameter"),
        ("/v1/classify", {"input": ["a", 1]}, "input", "invalid_type"),
        ("/v1/classify", {"input": []}, "input", "empty_array"),
        ("/v1/classify", {"messages": []}, "messages", "unsupported_parameter"),
    ],
)
async def test_invalid_field_is_rejected_by_its_path(
    http: httpx.AsyncClient,
    service: FakeService,
    path: str,
    fields: dict[str, Any],
    param: str,
    code: str,
) -> None:
    body = BODIES.get(path, RERANK) | fields
    status, error = await error_of(http, path, body)

    assert (status, error["param"], error["code"]) == (400, param, code), error["message"]
    assert not service.calls


@pytest.mark.parametrize(
    ("path", "fields", "field", "param"),
    [
        ("/v1/rerank", {}, "documents[1]", "documents[1].text"),
        ("/v1/rerank", {}, "documents[2]", "documents[2]"),
        ("/v1/rerank", {}, "max_tokens_per_document", "max_tokens_per_doc"),
        ("/v1/rerank", {}, "truncation.max_tokens", "truncate_prompt_tokens"),
        ("/v1/rerank", {}, "activation", "use_activation"),
        ("/v1/score", {}, "pairs[1].document", "text_2[1]"),
        ("/v1/score", {}, "pairs[1].query", "text_1"),
        ("/v1/score", {}, "pairs", "text_2"),
        ("/v1/score", {"text_1": ["a", "b"]}, "pairs[1].query", "text_1[1]"),
        ("/v1/score", {"text_2": "a"}, "pairs[0].document", "text_2"),
        ("/v1/classify", {}, "text_inputs.texts[0]", "input"),
        ("/v1/classify", {"input": ["a", ""]}, "text_inputs.texts[1]", "input[1]"),
        ("/v1/classify", {"input": [[1], []]}, "token_inputs.token_ids[1]", "input[1]"),
    ],
)
async def test_error_of_the_service_names_the_clients_field(
    http: httpx.AsyncClient,
    service: FakeService,
    path: str,
    fields: dict[str, Any],
    field: str,
    param: str,
) -> None:
    code = grpc.StatusCode.INVALID_ARGUMENT
    service.classification_error = Fail(code, "is wrong.", "INVALID_FIELD", field)

    status, error = await error_of(http, path, BODIES[path] | fields)

    assert (status, error["param"]) == (400, param)


@pytest.mark.parametrize("path", BODIES)
async def test_model_without_the_task_is_rejected(
    http: httpx.AsyncClient, service: FakeService, path: str
) -> None:
    words = "This model does not support it."
    service.classification_error = Fail(grpc.StatusCode.UNIMPLEMENTED, words, "UNSUPPORTED_METHOD")

    status, error = await error_of(http, path, BODIES[path])

    assert (status, error["message"]) == (400, words)


@pytest.mark.parametrize("path", BODIES)
async def test_tokens_are_counted(http: httpx.AsyncClient, path: str) -> None:
    used = (await http.post(path, json=BODIES[path])).json()["usage"]["prompt_tokens"]

    labels = {"model": MODEL}
    assert await metric(http, "chatrpc_gateway_prompt_tokens_total", labels) == used


@pytest.mark.parametrize("path", BODIES)
async def test_disconnected_client_cancels_the_call(
    http: httpx.AsyncClient, service: FakeService, path: str
) -> None:
    service.holds_tokens = True
    request = asyncio.ensure_future(http.post(path, json=BODIES[path]))
    await service.called()

    request.cancel()

    await service.cancelled()


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (
            "/v1/rerank",
            {"model": MODEL, "query": "x" * 2000, "documents": ["y"] * 1000},
            "documents",
        ),
        (
            "/v1/score",
            {"model": MODEL, "queries": "x" * 2000, "items": ["y"] * 1000},
            "items",
        ),
    ],
)
async def test_query_costs_as_often_as_it_is_read(
    service: FakeService, tmp_path: Path, path: str, body: dict[str, Any], param: str
) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(key(SECRET, "tokens_per_minute = 10000"))
    headers = {"authorization": f"Bearer {SECRET}"}
    async with (
        serving(upstream=service.target, api_keys=keys) as url,
        httpx.AsyncClient(base_url=url, headers=headers) as client,
    ):
        status, error = await error_of(client, path, body)

    assert (status, error["param"], error["code"]) == (400, param, "request_exceeds_limit")
