"""The service's life as callers and probes see it: starting, serving, draining, dead."""

import asyncio
from contextlib import suppress
from enum import Enum
from typing import Any

from grpc_health.v1 import health_pb2

from service.domain.backend import ServedModel
from service.errors import Draining, ModelNotFound, Starting
from service.rpc.calls.context import Context
from service.rpc.serving.health import HealthServicer

LIVENESS = "liveness"
READINESS = "readiness"
STARTUP = "startup"

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

# Calls that are on their way when the server stops, core ends with CANCELLED. So clients that have
# not heard yet of better places are refused by name, until none has come for this long. Some never
# hear.
_QUIET_S = 0.25
_MOST_LOOKS = 8


class State(Enum):
    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"


class Lifecycle:
    """Which models are served, how many generations run, and what `grpc.health.v1` says of it all.

    Health has the names "" and `readiness` (can answer), `liveness` (need not be restarted),
    `startup` (has been ready once), the full name of each service and the id of each model. All but
    `liveness` and `startup` go together.

    Args:
        service_names: the full names of the gRPC services that need a model.
    """

    def __init__(self, service_names: list[str]) -> None:
        self.health = HealthServicer()
        self._ready_names = ["", READINESS, *service_names]
        self._models: dict[str, ServedModel] = {}  # by id and by alias
        self._state = State.STARTING
        self._num_active = 0
        self._num_refused = 0  # because of the drain
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def state(self) -> State:
        return self._state

    @property
    def models(self) -> list[ServedModel]:
        """The models served, each once, in the order they were added."""
        return list({model.card.id: model for model in self._models.values()}.values())

    async def start(self) -> None:
        """Alive, not ready. To be called before the server is, whose health is born as SERVING."""
        await self._set_ready(is_ready=False)
        await self.health.set(STARTUP, NOT_SERVING)
        await self.health.set(LIVENESS, SERVING)

    async def serve(self, model: ServedModel) -> None:
        """Ready to answer with `model`."""
        for name in (model.card.id, *model.card.aliases):
            self._models[name] = model
            self._ready_names.append(name)
        self._state = State.SERVING
        await self._set_ready(is_ready=True)
        await self.health.set(STARTUP, SERVING)

    async def die(self) -> None:
        """The engine has failed: neither ready nor alive."""
        await self._set_ready(is_ready=False)
        await self.health.set(LIVENESS, NOT_SERVING)

    async def drain(self, delay_s: float, timeout_s: float) -> None:
        """Let the service run empty.

        Says NOT_SERVING at once; for `delay_s` still takes requests, since those who route to it
        hear of it late; then refuses new ones and waits until the last answer has left, `timeout_s`
        at the most, and, for two seconds at the most, until no new ones come.
        """
        await self._set_ready(is_ready=False)
        await asyncio.sleep(delay_s)
        self._state = State.DRAINING
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        for _ in range(_MOST_LOOKS):
            num_refused = self._num_refused
            await asyncio.sleep(_QUIET_S)
            if self._num_refused == num_refused:
                return

    def admit(self, name: str, context: Context) -> ServedModel:
        """The model called `name`; the call counts as active until its answer has left as well.

        Raises:
            Starting, Draining, ModelNotFound
        """
        if self._state is State.DRAINING:
            self._num_refused += 1
            raise Draining
        model = self.find(name)
        self._num_active += 1
        self._idle.clear()
        done: Any = self._note_done  # the type stubs know no plain function
        context.add_done_callback(done)
        return model

    def find(self, name: str) -> ServedModel:
        """The model called `name`.

        Raises:
            Starting, ModelNotFound
        """
        if self._state is State.STARTING:
            raise Starting
        if name not in self._models:
            raise ModelNotFound(name)
        return self._models[name]

    def _note_done(self, _: Context) -> None:
        self._num_active -= 1
        if self._num_active == 0:
            self._idle.set()

    async def _set_ready(self, *, is_ready: bool) -> None:
        for name in self._ready_names:
            await self.health.set(name, SERVING if is_ready else NOT_SERVING)
