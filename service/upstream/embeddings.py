"""The `EmbeddingBackend` over upstreams."""

import base64
import math
import sys
from array import array
from collections.abc import Sequence
from typing import Any

import msgspec

from service.domain.backend import CallContext
from service.domain.embeddings import EmbeddingRequest, Embeddings
from service.errors import UpstreamInvalidResponse
from service.upstream.backend import UpstreamModel
from service.upstream.failover import first_result
from service.upstream.failures import AttemptFailed, Failures
from service.upstream.pool import Member, UpstreamPool
from service.upstream.wire import EmbeddingList, decoded


class UpstreamEmbeddings:
    """`service.domain.backend.EmbeddingBackend` for a model that upstreams serve."""

    unsupported_fields = frozenset(
        ("prompt_name", "truncation", "normalize", "add_special_tokens", "priority")
    )
    num_dimensions = None
    prompt_names = ()

    def __init__(self, model: UpstreamModel, pool: UpstreamPool) -> None:
        self._model = model
        self._pool = pool

    async def embed(self, request: EmbeddingRequest, call: CallContext) -> Embeddings:
        """See `service.domain.backend.EmbeddingBackend.embed`."""
        body: dict[str, Any] = {
            "model": self._model.upstream_id,
            "input": request.inputs,
            # Base64 has 5.3 bytes for each number, and a list about 21. Some services return lists.
            "encoding_format": "base64",
        }
        if request.dimensions is not None:
            body["dimensions"] = request.dimensions
        content = await call.workers.text(msgspec.json.encode, body)
        failures = Failures(self._model.names, "embeddings", self._model.id, request.inputs_field)

        async def attempt(member: Member) -> Embeddings:
            upstream = member.upstream
            response = await upstream.post(f"{upstream.url}/embeddings", content, failures)
            return await call.workers.text(_embeddings, response, len(request.inputs))

        return await first_result(self._pool, attempt)


def _embeddings(content: bytes, num_inputs: int) -> Embeddings:
    """Return the embeddings in a response.

    Raises:
        UpstreamInvalidResponse: There is not one for each input.
        AttemptFailed: See `_vector`.
    """
    response = decoded(content, EmbeddingList)
    items = sorted(response.data, key=lambda item: item.index)
    if [item.index for item in items] != list(range(num_inputs)):
        raise UpstreamInvalidResponse(
            "The upstream service did not return one embedding for each input."
        )
    usage = response.usage
    vectors = [_vector(item.embedding) for item in items]
    return Embeddings(vectors, (usage and usage.prompt_tokens) or 0)


def _vector(embedding: str | Sequence[float]) -> Sequence[float]:
    """Return the numbers of an embedding.

    Raises:
        AttemptFailed: It is no base64 of little-endian floats of 32 bits, or one is not finite.
    """
    if not isinstance(embedding, str):
        return embedding
    vector = array("f")
    try:
        vector.frombytes(base64.b64decode(embedding, validate=True))
    except ValueError as error:
        raise _not_base64(str(error)) from error
    if sys.byteorder == "big":
        vector.byteswap()
    if not math.isfinite(sum(vector)):
        raise _not_base64("A number is not finite.")
    return vector


def _not_base64(cause: str) -> AttemptFailed:
    text = "The upstream service did not return embeddings as base64 of finite numbers."
    return AttemptFailed(UpstreamInvalidResponse(text), f"{text} {cause}")
