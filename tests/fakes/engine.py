"""An engine that answers from a script."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import contextmanager

from service.errors import ChatrpcError
from service.types import EngineStats, FinishReason, Request, TokenOutput


class FakeEngine:
    """`service.types.Engine` that gives each request the outputs of `script`.

    A step of the script is an output, an error to raise or an event to wait for. `requests` are
    those that came, `num_running` those that have not ended.
    """

    max_model_len = 1000

    def __init__(self) -> None:
        self.script: list[TokenOutput | Exception | asyncio.Event] = []
        self.refusal: ChatrpcError | None = None
        self.requests: list[Request] = []
        self.num_running = 0
        self.num_room_checks = 0

    def answer(self, text: str, *, finish_reason: FinishReason = FinishReason.LENGTH) -> None:
        """Answer with the bytes of `text`, one token a step."""
        *head, last = text.encode()
        self.script = [TokenOutput((byte,)) for byte in head]
        self.script.append(TokenOutput((last,), finish_reason))

    def check_room(self) -> None:
        self.num_room_checks += 1

    async def start(self) -> None: ...

    async def generate(self, request: Request) -> AsyncGenerator[TokenOutput, None]:
        if self.refusal is not None:
            raise self.refusal
        self.requests.append(request)
        with self._running():
            yield TokenOutput()
            for step in self.script:
                if isinstance(step, asyncio.Event):
                    await step.wait()
                elif isinstance(step, Exception):
                    raise step
                else:
                    yield step

    def stats(self) -> EngineStats:
        return EngineStats(num_running=self.num_running)

    async def wait_dead(self) -> None:
        await asyncio.Event().wait()

    async def stop(self) -> None: ...

    @contextmanager
    def _running(self):  # type: ignore[no-untyped-def]  # a generator of nothing
        self.num_running += 1
        try:
            yield
        finally:
            self.num_running -= 1
