"""EmbeddingService over a real socket, with a backend that computes made-up embeddings."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from chatrpc.v1 import completion_pb2, embedding_service_pb2
from chatrpc_process.access.secret import digest_of
from service.domain.backend import ServedModel
from service.errors import ChatrpcError, InvalidField, QueueFull, StepFailed
from service.generation.local_backend import locally_served
from service.metrics import Metrics
from service.rpc.decode.limits import MAX_NUMBERS
from tests.fakes.embeddings import FakeEmbeddings, vector_of
from tests.fakes.wait import until
from tests.support.api_keys import SECRET
from tests.support.grpc_server import CARD, Running, served
from tests.support.rpc_errors import RpcError, rpc_error

MINE = (("authorization", f"Bearer {SECRET}"),)


def with_embeddings(running: Running) -> ServedModel:
    """Return a model called `embedder`, with an embedding backend."""
    card = replace(CARD, id="embedder", aliases=("other-name",))
    return replace(locally_served(running.model), card=card, embeddings=FakeEmbeddings())


@pytest.fixture
async def embedding(running: Running) -> Running:
    """Return a server with the model `embedder` in addition to `fake`."""
    await running.lifecycle.serve(with_embeddings(running))
    return running


def backend(running: Running) -> FakeEmbeddings:
    found = running.lifecycle.find("embedder").embeddings
    assert isinstance(found, FakeEmbeddings)
    return found


def texts(*given: str, **fields: Any) -> embedding_service_pb2.CreateEmbeddingsRequest:
    fields = {"model": "embedder", **fields}
    inputs = embedding_service_pb2.TextInputs(texts=given)
    return embedding_service_pb2.CreateEmbeddingsRequest(text_inputs=inputs, **fields)


def tokens(*given: list[int]) -> embedding_service_pb2.CreateEmbeddingsRequest:
    token_ids = [completion_pb2.TokenIds(ids=ids) for ids in given]
    inputs = embedding_service_pb2.TokenInputs(token_ids=token_ids)
    return embedding_service_pb2.CreateEmbeddingsRequest(model="embedder", token_inputs=inputs)


async def rejected(running: Running, request: Any, **options: Any) -> RpcError:
    return await rpc_error(running.embeddings.CreateEmbeddings(request, **options))


async def test_texts_have_embeddings_in_their_order(embedding: Running) -> None:
    request = texts("abc", "a", model="other-name", user="me")
    response = await embedding.embeddings.CreateEmbeddings(request)
    assert [each.index for each in response.embeddings] == [0, 1]
    assert [list(each.values) for each in response.embeddings] == [vector_of(3), vector_of(1)]
    assert (response.model, response.usage.prompt_tokens) == ("embedder", 4)
    [received] = backend(embedding).requests
    assert (received.inputs, received.user) == (("abc", "a"), "me")


async def test_token_ids_have_embeddings(embedding: Running) -> None:
    response = await embedding.embeddings.CreateEmbeddings(tokens([5, 6], [7]))
    assert [list(each.values) for each in response.embeddings] == [vector_of(2), vector_of(1)]
    assert backend(embedding).requests[0].inputs == ((5, 6), (7,))


async def test_dimensions_reach_the_backend(embedding: Running) -> None:
    response = await embedding.embeddings.CreateEmbeddings(texts("ab", dimensions=2))
    assert list(response.embeddings[0].values) == vector_of(2, 2)


async def test_large_request_is_served(embedding: Running) -> None:
    request = texts(*["a" * 100] * 2048, dimensions=100)
    response = await embedding.embeddings.CreateEmbeddings(request)
    assert [each.index for each in response.embeddings] == list(range(2048))
    assert list(response.embeddings[-1].values) == vector_of(100, 100)


async def test_model_without_embeddings_is_unimplemented(embedding: Running) -> None:
    error = await rejected(embedding, texts("a", model="fake"))
    assert (error.code, error.reason) == (grpc.StatusCode.UNIMPLEMENTED, "UNSUPPORTED_METHOD")
    assert error.message == "This model does not support CreateEmbeddings."
    assert error.metadata == {"model": "fake"}


async def test_unknown_model_is_not_found(embedding: Running) -> None:
    error = await rejected(embedding, texts("a", model="nobody"))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")


@pytest.mark.parametrize(
    ("request_", "reason", "field"),
    [
        (texts("a", model=""), "MISSING_FIELD", "model"),
        (
            embedding_service_pb2.CreateEmbeddingsRequest(model="embedder"),
            "MISSING_FIELD",
            "input",
        ),
        (texts(), "INVALID_FIELD", "text_inputs.texts"),
        (texts(*["a"] * 2049), "INVALID_FIELD", "text_inputs.texts"),
        (texts("a", ""), "INVALID_FIELD", "text_inputs.texts[1]"),
        (tokens(), "INVALID_FIELD", "token_inputs.token_ids"),
        (tokens([1], []), "INVALID_FIELD", "token_inputs.token_ids[1]"),
        (texts("a", dimensions=0), "INVALID_FIELD", "dimensions"),
        (texts("a", "b", dimensions=MAX_NUMBERS // 2 + 1), "INVALID_FIELD", "dimensions"),
        (texts("a", user="u" * 513), "INVALID_FIELD", "user"),
    ],
)
async def test_invalid_request_is_rejected_by_field(
    embedding: Running, request_: Any, reason: str, field: str
) -> None:
    error = await rejected(embedding, request_)
    assert error.code == grpc.StatusCode.INVALID_ARGUMENT
    assert (error.reason, error.fields) == (reason, [field])
    assert backend(embedding).requests == []


async def test_embeddings_that_do_not_fit_in_a_message_are_rejected(
    embedding: Running,
) -> None:
    backend(embedding).num_dimensions = 4000
    error = await rejected(embedding, texts(*["a"] * 2048))
    assert (error.reason, error.fields) == ("INVALID_FIELD", ["text_inputs.texts"])
    assert "2048 embeddings of 4000 dimensions" in error.message


@pytest.mark.parametrize(
    ("raised", "code", "reason"),
    [
        (
            InvalidField("text_inputs.texts[0]", "is too long."),
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_FIELD",
        ),
        (QueueFull(1, 1.0), grpc.StatusCode.UNAVAILABLE, "QUEUE_FULL"),
        (StepFailed(), grpc.StatusCode.INTERNAL, "STEP_FAILED"),
    ],
)
async def test_error_of_the_backend_is_returned(
    embedding: Running, raised: ChatrpcError, code: grpc.StatusCode, reason: str
) -> None:
    backend(embedding).error = raised
    error = await rejected(embedding, texts("a"))
    assert (error.code, error.reason) == (code, reason)


async def test_request_reserves_capacity_while_it_runs(embedding: Running) -> None:
    hold = backend(embedding).hold = asyncio.Event()
    call = embedding.embeddings.CreateEmbeddings(texts("a", "b"))
    await until(lambda: len(backend(embedding).requests) == 1)
    assert [num_sequences for _, num_sequences in embedding.engine.reserved] == [1]
    hold.set()
    await call
    assert embedding.engine.reserved == []


async def test_request_without_capacity_is_rejected_before_the_backend(embedding: Running) -> None:
    embedding.engine.reserve_error = QueueFull(1, 1.0)
    error = await rejected(embedding, texts("a"))
    assert (error.reason, error.retry_after_s) == ("QUEUE_FULL", 1.0)
    assert backend(embedding).requests == []


async def test_cancelled_call_cancels_the_backend(embedding: Running) -> None:
    backend(embedding).hold = asyncio.Event()
    call = embedding.embeddings.CreateEmbeddings(texts("a"))
    await until(lambda: len(backend(embedding).requests) == 1)
    call.cancel()
    await until(lambda: backend(embedding).num_cancelled == 1)


async def test_service_has_a_health_status(embedding: Running) -> None:
    request = health_pb2.HealthCheckRequest(service="chatrpc.v1.EmbeddingService")
    assert (await embedding.health.Check(request)).status == health_pb2.HealthCheckResponse.SERVING


async def test_tokens_of_embeddings_are_counted() -> None:
    metrics = Metrics()
    async with served(metrics=metrics) as running:
        await running.lifecycle.serve(with_embeddings(running))
        await running.embeddings.CreateEmbeddings(texts("abc", "d"))
        method = {
            "grpc_service": "chatrpc.v1.EmbeddingService",
            "grpc_method": "CreateEmbeddings",
        }
        value = metrics.registry.get_sample_value
        await until(lambda: value("grpc_server_handled_total", {**method, "grpc_code": "OK"}) == 1)
        assert value("chatrpc_prompt_tokens_total") == 4
        assert value("chatrpc_generation_tokens_total") == 0
        assert value("chatrpc_aborted_requests_total") == 0


def keys_file(directory: Path, line: str) -> Path:
    path = directory / "keys.toml"
    path.write_text(f'[[key]]\nname = "one"\nsha256 = "{digest_of(SECRET)}"\n{line}\n')
    return path


@pytest.mark.parametrize(
    ("line", "num_allowed"), [("requests_per_minute = 2", 2), ("tokens_per_minute = 100", 1)]
)
async def test_embeddings_count_against_the_limits_of_a_key(
    tmp_path: Path, line: str, num_allowed: int
) -> None:
    async with served(keys_file(tmp_path, line)) as running:
        await running.lifecycle.serve(with_embeddings(running))
        for _ in range(num_allowed):
            await running.embeddings.CreateEmbeddings(texts("a" * 100), metadata=MINE)
        error = await rejected(running, texts("a" * 100), metadata=MINE)
        assert (error.code, error.reason) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "LIMIT_REACHED",
        )


async def test_embeddings_without_a_count_cost_the_least_tokens_of_their_input(
    tmp_path: Path,
) -> None:
    async with served(keys_file(tmp_path, "tokens_per_minute = 100")) as running:
        await running.lifecycle.serve(with_embeddings(running))
        backend(running).counts_tokens = False
        for _ in range(2):  # each has at least 50 tokens
            await running.embeddings.CreateEmbeddings(texts("a" * 400), metadata=MINE)
        error = await rejected(running, texts("a" * 400), metadata=MINE)
        assert error.reason == "LIMIT_REACHED"


async def test_failed_embeddings_cost_no_tokens(tmp_path: Path) -> None:
    async with served(keys_file(tmp_path, "tokens_per_minute = 100")) as running:
        await running.lifecycle.serve(with_embeddings(running))
        backend(running).error = StepFailed()
        for _ in range(4):
            error = await rejected(running, texts("a" * 400), metadata=MINE)
            assert error.reason == "STEP_FAILED"


async def test_request_above_the_token_limit_of_a_key_names_its_input(tmp_path: Path) -> None:
    async with served(keys_file(tmp_path, "tokens_per_minute = 10")) as running:
        await running.lifecycle.serve(with_embeddings(running))
        error = await rejected(running, texts("a" * 10_000), metadata=MINE)
        assert (error.reason, error.fields) == ("EXCEEDS_LIMIT", ["input"])


async def test_model_outside_the_patterns_of_a_key_is_forbidden(tmp_path: Path) -> None:
    async with served(keys_file(tmp_path, 'models = ["fake"]')) as running:
        await running.lifecycle.serve(with_embeddings(running))
        error = await rejected(running, texts("a"), metadata=MINE)
        assert error.reason == "MODEL_FORBIDDEN"
