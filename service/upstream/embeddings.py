"""The `EmbeddingBackend` over upstreams."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec

from service.domain.backend import CallContext
from service.domain.embeddings import EmbeddingRequest, Embeddings
from service.errors import UpstreamInvalidResponse
from service.upstream.backend import UpstreamModel
from service.upstream.failover import with_failover
from service.upstream.failures import AttemptFailed, Failures
from service.upstream.pool import Member, UpstreamPool
from service.upstream.wire import EmbeddingList, decoded


class UpstreamEmbeddings:
    """`service.domain.backend.EmbeddingBackend` for a model that upstreams serve."""

    def __init__(self, model: UpstreamModel, pool: UpstreamPool) -> None:
        self._model = model
        self._pool = pool

    async def embed(self, request: EmbeddingRequest, call: CallContext) -> Embeddings:
        """See `service.domain.backend.EmbeddingBackend.embed`."""
        body: dict[str, Any] = {
            "model": self._model.upstream_id,
            "input": request.inputs,
            "encoding_format": "float",
        }
        if request.dimensions is not None:
            body["dimensions"] = request.dimensions
        content = await call.workers.text(msgspec.json.encode, body)
        failures = Failures(self._model.names, "embeddings", self._model.id, request.inputs_field)

        async def attempt(member: Member) -> AsyncGenerator[Embeddings, None]:
            upstream = member.upstream
            response = await upstream.post(f"{upstream.url}/embeddings", content, failures)
            yield await call.workers.text(_embeddings, response, len(request.inputs))

        async with aclosing(with_failover(self._pool, attempt)) as results:
            return await anext(results)


def _embeddings(content: bytes, num_inputs: int) -> Embeddings:
    """Return the embeddings in a response.

    Raises:
        AttemptFailed: There is not one for each input.
    """
    try:
        response = decoded(content, EmbeddingList)
    except UpstreamInvalidResponse as error:
        raise AttemptFailed(error, str(error)) from error
    items = sorted(response.data, key=lambda item: item.index)
    if [item.index for item in items] != list(range(num_inputs)):
        text = "The upstream service did not return one embedding for each input."
        raise AttemptFailed(UpstreamInvalidResponse(text), text)
    usage = response.usage
    return Embeddings([item.embedding for item in items], (usage and usage.prompt_tokens) or 0)
