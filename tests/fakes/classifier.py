"""A `ClassificationBackend` and `ScoreBackend` whose scores are the lengths of inputs."""

import asyncio

from service.domain.backend import CallContext
from service.domain.pooling import (
    ClassificationRequest,
    Classifications,
    ScoreRequest,
    Scores,
    TextPair,
)
from service.errors import ChatrpcError


class FakeClassifier:
    """A backend with the labels `short` and `long`.

    The score of `long` is the length of an input, and that of `short` is 10. The score of a pair is
    the length of its document.

    Attributes:
        requests: All requests so far.
        calls: The calls of these requests.
        error: If it is set, both methods raise it.
        hold: If it is set, both methods wait for it.
        num_cancelled: The number of requests that were cancelled.
    """

    labels = ("short", "long")

    def __init__(self, *, has_activation: bool = True) -> None:
        self.has_activation = has_activation
        self.requests: list[ClassificationRequest | ScoreRequest] = []
        self.calls: list[CallContext] = []
        self.error: ChatrpcError | None = None
        self.hold: asyncio.Event | None = None
        self.num_cancelled = 0

    async def classify(self, request: ClassificationRequest, call: CallContext) -> Classifications:
        await self._note(request, call)
        lengths = [_length(each) for each in request.inputs]
        return Classifications([[10.0, float(length)] for length in lengths], sum(lengths))

    async def score(self, request: ScoreRequest, call: CallContext) -> Scores:
        await self._note(request, call)
        scores = [float(len(pair.document)) for pair in request.pairs]
        return Scores(scores, sum(map(_length, request.pairs)))

    async def _note(self, request: ClassificationRequest | ScoreRequest, call: CallContext) -> None:
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


def _length(each: str | tuple[int, ...] | TextPair) -> int:
    return len(each.query + each.document) if isinstance(each, TextPair) else len(each)
