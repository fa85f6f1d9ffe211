"""An `EmbeddingBackend` that computes the embedding of an input from its length."""

import asyncio

from service.domain.backend import CallContext
from service.domain.embeddings import EmbeddingRequest, Embeddings
from service.errors import ChatrpcError


class FakeEmbeddings:
    """A backend whose embedding of an input is `vector_of` its length.

    Attributes:
        requests: All requests so far.
        calls: The calls of these requests.
        error: If it is set, `embed` raises it.
        hold: If it is set, `embed` waits for it.
        num_dimensions: The number of dimensions, unless the request sets it.
        num_cancelled: The number of requests that were cancelled.
        counts_tokens: False if the numbers of tokens are unknown.
    """

    unsupported_fields = frozenset[str]()
    prompt_names = ()

    def __init__(self) -> None:
        self.requests: list[EmbeddingRequest] = []
        self.calls: list[CallContext] = []
        self.error: ChatrpcError | None = None
        self.hold: asyncio.Event | None = None
        self.num_dimensions = 3
        self.num_cancelled = 0
        self.counts_tokens = True

    async def embed(self, request: EmbeddingRequest, call: CallContext) -> Embeddings:
        self.requests.append(request)
        self.calls.append(call)
        if self.error is not None:
            raise self.error
        try:
            if self.hold is not None:
                await self.hold.wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        lengths = [len(each) for each in request.inputs]
        num_dimensions = request.dimensions or self.num_dimensions
        vectors = {length: vector_of(length, num_dimensions) for length in lengths}
        num_tokens = sum(lengths) if self.counts_tokens else 0
        return Embeddings([vectors[length] for length in lengths], num_tokens)


def vector_of(length: int, num_dimensions: int = 3) -> list[float]:
    """Return numbers that a float of 32 bits holds exactly."""
    return [length + i / 4 for i in range(num_dimensions)]
