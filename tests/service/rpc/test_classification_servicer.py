"""ClassificationService over a real socket, with a backend that computes made-up scores."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from chatrpc.v1 import (
    chat_service_pb2,
    classification_service_pb2,
    completion_pb2,
    completion_service_pb2,
    embedding_service_pb2,
    model_service_pb2,
)
from chatrpc_process.access.secret import digest_of
from service.domain.backend import ServedModel
from service.domain.pooling import (
    Activation,
    ClassificationRequest,
    ScoreRequest,
    TextPair,
    Truncation,
)
from service.errors import StepFailed
from service.generation.local_backend import locally_served
from service.rpc.decode.limits import MAX_NUMBERS
from tests.fakes.classifier import FakeClassifier
from tests.fakes.wait import until
from tests.support.api_keys import SECRET
from tests.support.grpc_server import CARD, Running, params, served
from tests.support.rpc_errors import RpcError, rpc_error

pb = classification_service_pb2
MINE = (("authorization", f"Bearer {SECRET}"),)


def with_classifier(running: Running, backend: FakeClassifier) -> ServedModel:
    """Return a model called `ranker`, which does not generate."""
    card = replace(CARD, id="ranker", aliases=())
    of_chat = locally_served(running.model)
    return ServedModel(card, of_chat.backend, classifier=backend, scorer=backend)


@pytest.fixture
def backend() -> FakeClassifier:
    return FakeClassifier()


@pytest.fixture
async def ranking(running: Running, backend: FakeClassifier) -> Running:
    """Return a server with the model `ranker` in addition to `fake`."""
    await running.lifecycle.serve(with_classifier(running, backend))
    return running


def texts(*given: str, **fields: Any) -> Any:
    inputs = embedding_service_pb2.TextInputs(texts=given)
    return pb.ClassifyRequest(**{"model": "ranker", "text_inputs": inputs, **fields})


def pairs(*given: tuple[str, str], **fields: Any) -> Any:
    found = [pb.TextPair(query=query, document=document) for query, document in given]
    return pb.ScoreRequest(**{"model": "ranker", "pairs": found, **fields})


def rerank(*documents: str, **fields: Any) -> Any:
    return pb.RerankRequest(**{"model": "ranker", "query": "q", "documents": documents, **fields})


def send(running: Running, request: Any) -> Any:
    stub = running.classifications
    if isinstance(request, pb.ClassifyRequest):
        return stub.Classify(request)
    return stub.Score(request) if isinstance(request, pb.ScoreRequest) else stub.Rerank(request)


async def rejected(running: Running, request: Any) -> RpcError:
    return await rpc_error(send(running, request))


async def test_texts_are_classified(ranking: Running) -> None:
    response = await send(ranking, texts("abc", "a" * 20))
    assert list(response.labels) == ["short", "long"]
    assert [each.label for each in response.classifications] == ["short", "long"]
    assert [each.index for each in response.classifications] == [0, 1]
    assert [list(each.scores) for each in response.classifications] == [[10, 3], [10, 20]]
    assert (response.model, response.usage.prompt_tokens) == ("ranker", 23)


async def test_token_ids_and_pairs_are_classified(
    ranking: Running, backend: FakeClassifier
) -> None:
    ids = embedding_service_pb2.TokenInputs(token_ids=[completion_pb2.TokenIds(ids=[5, 6])])
    await send(ranking, pb.ClassifyRequest(model="ranker", token_inputs=ids))
    given = pb.TextPairs(pairs=[pb.TextPair(query="a", document="b")])
    await send(ranking, pb.ClassifyRequest(model="ranker", pair_inputs=given))
    found = [each.inputs for each in backend.requests if isinstance(each, ClassificationRequest)]
    assert found == [((5, 6),), (TextPair("a", "b"),)]


async def test_options_reach_the_backend(ranking: Running, backend: FakeClassifier) -> None:
    shortened = embedding_service_pb2.Truncation(
        side=embedding_service_pb2.TRUNCATION_SIDE_LEFT, max_tokens=7
    )
    await send(
        ranking,
        rerank(
            "abc",
            activation=pb.ACTIVATION_NONE,
            truncation=shortened,
            max_tokens_per_document=3,
            priority=4,
        ),
    )
    expected = ScoreRequest(
        (TextPair("q", "abc"),), "documents", Activation.NONE, Truncation("left", 7), 3
    )
    assert backend.requests == [expected]
    assert backend.calls[0].priority == 4


async def test_pairs_are_scored_in_their_order(ranking: Running) -> None:
    response = await send(ranking, pairs(("q", "aaa"), ("q", "a")))
    assert list(response.scores) == [3, 1]
    assert (response.model, response.usage.prompt_tokens) == ("ranker", 6)


@pytest.mark.parametrize(("top_n", "number"), [(None, 4), (2, 2), (9, 4)])
async def test_documents_are_sorted_by_relevance(
    ranking: Running, top_n: int | None, number: int
) -> None:
    response = await send(ranking, rerank("aa", "b", "cccc", "dd", top_n=top_n))
    found = [(each.index, each.relevance_score) for each in response.results]
    assert found == [(2, 4), (0, 2), (3, 2), (1, 1)][:number]


@pytest.mark.parametrize(
    ("request_", "reason", "field"),
    [
        (texts("a", model=""), "MISSING_FIELD", "model"),
        (pb.ClassifyRequest(model="ranker"), "MISSING_FIELD", "input"),
        (texts(), "INVALID_FIELD", "text_inputs.texts"),
        (texts("a", ""), "INVALID_FIELD", "text_inputs.texts[1]"),
        (texts("a", activation=9), "INVALID_FIELD", "activation"),
        (texts("a", truncation={"max_tokens": 0}), "INVALID_FIELD", "truncation.max_tokens"),
        (texts("a", truncation={"side": 7}), "INVALID_FIELD", "truncation.side"),
        (texts("a", user="u" * 513), "INVALID_FIELD", "user"),
        (pairs(), "INVALID_FIELD", "pairs"),
        (pairs(("q", "")), "INVALID_FIELD", "pairs[0].document"),
        (pairs(("q", "d"), activation=2), "INVALID_FIELD", "activation"),
        (pairs(("q", "d"), user="u" * 513), "INVALID_FIELD", "user"),
        (rerank("a", query=""), "MISSING_FIELD", "query"),
        (rerank(), "INVALID_FIELD", "documents"),
        (rerank(*["a"] * 2049), "INVALID_FIELD", "documents"),
        (rerank("a", ""), "INVALID_FIELD", "documents[1]"),
        (rerank("a", top_n=0), "INVALID_FIELD", "top_n"),
        (rerank("a", max_tokens_per_document=0), "INVALID_FIELD", "max_tokens_per_document"),
        (rerank("a", user="u" * 513), "INVALID_FIELD", "user"),
    ],
)
async def test_invalid_request_is_rejected_by_field(
    ranking: Running, backend: FakeClassifier, request_: Any, reason: str, field: str
) -> None:
    error = await rejected(ranking, request_)
    assert error.code == grpc.StatusCode.INVALID_ARGUMENT
    assert (error.reason, error.fields) == (reason, [field])
    assert backend.requests == []


async def test_activation_of_a_model_without_a_head_is_rejected(
    ranking: Running, backend: FakeClassifier
) -> None:
    backend.has_activation = False
    error = await rejected(ranking, rerank("a", activation=pb.ACTIVATION_SIGMOID))
    assert (error.reason, error.fields) == ("UNSUPPORTED_FIELD", ["activation"])


async def test_scores_that_do_not_fit_in_a_message_are_rejected(
    ranking: Running, backend: FakeClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "labels", ["x"] * (MAX_NUMBERS // 2 + 1))
    error = await rejected(ranking, texts("a", "b"))
    assert (error.reason, error.fields) == ("INVALID_FIELD", ["text_inputs.texts"])
    assert "2 inputs of" in error.message


@pytest.mark.parametrize("request_", [texts("a"), pairs(("q", "d")), rerank("d")])
async def test_model_without_the_task_is_unimplemented(ranking: Running, request_: Any) -> None:
    request_.model = "fake"
    error = await rejected(ranking, request_)
    method = type(request_).__name__.removesuffix("Request")
    assert (error.code, error.reason) == (grpc.StatusCode.UNIMPLEMENTED, "UNSUPPORTED_METHOD")
    assert error.message == f"This model does not support {method}."
    assert error.metadata == {"model": "fake"}


async def test_model_that_does_not_generate_rejects_completions(ranking: Running) -> None:
    chat = params()
    chat.model = "ranker"
    error = await rpc_error(
        ranking.chat.CreateChatCompletion(chat_service_pb2.CreateChatCompletionRequest(params=chat))
    )
    assert (error.code, error.reason) == (grpc.StatusCode.UNIMPLEMENTED, "UNSUPPORTED_METHOD")
    assert error.message == "This model does not support ChatService."
    text = completion_pb2.CompletionParams(
        model="ranker", prompts=[completion_pb2.CompletionPrompt(text="a")]
    )
    error = await rpc_error(
        ranking.completions.CreateCompletion(
            completion_service_pb2.CreateCompletionRequest(params=text)
        )
    )
    assert error.message == "This model does not support CompletionService."


async def test_model_shows_its_tasks_and_labels(ranking: Running) -> None:
    request = model_service_pb2.GetModelRequest(id="ranker")
    shown = (await ranking.models.GetModel(request)).model.capabilities
    assert list(shown.tasks) == [
        model_service_pb2.MODEL_TASK_CLASSIFY,
        model_service_pb2.MODEL_TASK_SCORE,
    ]
    assert list(shown.labels) == ["short", "long"]
    assert not shown.structured_outputs
    assert not shown.HasField("max_logprobs")
    assert not shown.HasField("embedding_dimensions")


async def test_error_of_the_backend_is_returned(ranking: Running, backend: FakeClassifier) -> None:
    backend.error = StepFailed()
    for request in (texts("a"), pairs(("q", "d")), rerank("d")):
        error = await rejected(ranking, request)
        assert (error.code, error.reason) == (grpc.StatusCode.INTERNAL, "STEP_FAILED")


async def test_cancelled_call_cancels_the_backend(
    ranking: Running, backend: FakeClassifier
) -> None:
    backend.hold = asyncio.Event()
    call = send(ranking, rerank("a"))
    await until(lambda: len(backend.requests) == 1)
    assert [number for _, number in ranking.engine.reserved] == [1]
    call.cancel()
    await until(lambda: backend.num_cancelled == 1)


async def test_scores_count_against_the_limits_of_a_key(
    tmp_path: Path, backend: FakeClassifier
) -> None:
    keys = tmp_path / "keys.toml"
    limits = f'sha256 = "{digest_of(SECRET)}"\ntokens_per_minute = 100\nmin_priority = 1\n'
    keys.write_text(f'[[key]]\nname = "one"\n{limits}')
    async with served(keys) as running:
        await running.lifecycle.serve(with_classifier(running, backend))
        stub = running.classifications
        error = await rpc_error(stub.Rerank(rerank("a", priority=0), metadata=MINE))
        assert error.fields == ["priority"]
        await stub.Rerank(rerank("a" * 100), metadata=MINE)
        error = await rpc_error(stub.Rerank(rerank("a" * 100), metadata=MINE))
        assert error.reason == "LIMIT_REACHED"
