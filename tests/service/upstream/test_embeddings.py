"""Embeddings of upstreams."""

import base64
import math
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest

from service.domain.embeddings import EmbeddingRequest, Embeddings
from service.errors import ChatrpcError, InvalidField, UnsupportedMethod, UpstreamInvalidResponse
from service.upstream import client
from tests.fakes import openai_upstream as fake
from tests.fakes.openai_upstream import FakeUpstream
from tests.service.upstream.serving import Serving, call, serving

PATH = "/v1/embeddings"
ITEMS = [{"index": 1, "embedding": [3, 4.5]}, {"index": 0, "embedding": [1.0, 2.0]}]
USAGE = {"prompt_tokens": 5, "total_tokens": 5}


def based(numbers: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with fake.running() as upstream:
        yield upstream


async def embedded(served: Serving, request: EmbeddingRequest) -> Embeddings:
    backend = served.model.embeddings
    assert backend is not None
    return await backend.embed(request, call())


async def test_embeddings_are_in_the_order_of_the_inputs(upstream: FakeUpstream) -> None:
    upstream.handlers[PATH] = fake.replies(fake.response(200, {"data": ITEMS, "usage": USAGE}))
    async with serving(upstream.url) as served:
        result = await embedded(served, EmbeddingRequest(("a", "b"), dimensions=2))
    assert result == Embeddings([[1.0, 2.0], [3.0, 4.5]], 5)
    assert upstream.generations == [
        {"model": fake.MODEL, "input": ["a", "b"], "encoding_format": "base64", "dimensions": 2}
    ]


async def test_embeddings_may_be_base64(upstream: FakeUpstream) -> None:
    items = [{"index": i, "embedding": based([i + 0.5, -2.0])} for i in range(2)]
    upstream.handlers[PATH] = fake.replies(fake.response(200, {"data": items}))
    async with serving(upstream.url) as served:
        result = await embedded(served, EmbeddingRequest(("a", "b")))
    assert [list(vector) for vector in result.vectors] == [[0.5, -2.0], [1.5, -2.0]]


async def test_response_that_is_too_large_is_a_rejection_of_the_input(
    upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "MAX_BODY_BYTES", 1 << 20)
    upstream.handlers[PATH] = fake.replies(fake.response(200, b" " * (2 << 20)))
    async with fake.running() as second, serving(upstream.url, second.url) as served:
        with pytest.raises(InvalidField, match="more than 1 MiB") as caught:
            await embedded(served, EmbeddingRequest(("a",), inputs_field="the_inputs"))
        assert caught.value.field == "the_inputs"
        assert second.requests == []
        assert not any(member.is_down for member in served.runtime._pool.members)


async def test_token_ids_are_sent(upstream: FakeUpstream) -> None:
    upstream.handlers[PATH] = fake.replies(fake.response(200, {"data": ITEMS[1:]}))
    async with serving(upstream.url) as served:
        result = await embedded(served, EmbeddingRequest(((1, 2),)))
    assert result.num_prompt_tokens == 0
    assert upstream.generations[0]["input"] == [[1, 2]]


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (200, {"data": ITEMS[:1]}, UpstreamInvalidResponse),
        (200, {"data": [{"index": 0, "embedding": "AAAA"}]}, UpstreamInvalidResponse),
        (200, {"data": [{"index": 0, "embedding": "hello!!!"}]}, UpstreamInvalidResponse),
        (
            200,
            {"data": [{"index": 0, "embedding": based([math.inf])}]},
            UpstreamInvalidResponse,
        ),
        (200, {"data": [{"index": 0, "embedding": based([math.nan])}]}, UpstreamInvalidResponse),
        (200, {"data": [{"index": 0, "embedding": [1e39]}]}, UpstreamInvalidResponse),
        (200, b"[]", UpstreamInvalidResponse),
        (400, {"error": {"message": "no", "param": "dimensions"}}, InvalidField),
        (404, {"detail": "Not Found"}, UnsupportedMethod),
    ],
)
async def test_failed_response_has_its_error(
    upstream: FakeUpstream, status: int, body: Any, kind: type[ChatrpcError]
) -> None:
    upstream.handlers[PATH] = fake.replies(fake.response(status, body))
    async with serving(upstream.url) as served:
        with pytest.raises(ChatrpcError) as caught:
            await embedded(served, EmbeddingRequest(("a",)))
    assert type(caught.value) is kind


async def test_failed_upstream_is_replaced(upstream: FakeUpstream) -> None:
    async with fake.running() as bad:
        bad.handlers[PATH] = fake.replies(fake.response(500, b""))
        upstream.handlers[PATH] = fake.replies(fake.response(200, {"data": ITEMS[1:]}))
        async with serving(bad.url, upstream.url) as served:
            result = await embedded(served, EmbeddingRequest(("a",)))
    assert result.vectors == [[1.0, 2.0]]
