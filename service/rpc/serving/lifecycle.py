"""The state of the service for callers and probes: starting, serving, draining, dead."""

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

# If a call arrives while the server stops, gRPC ends it with CANCELLED. So before that, new calls
# are rejected with DRAINING until none has come for this number of seconds. The number of such
# periods is limited.
_QUIET_S = 0.25
_MAX_QUIET_CHECKS = 8


class State(Enum):
    """The states of the service, on which the admission of calls depends."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"


class Lifecycle:
    """The models that are served, the number of active calls, and the health statuses.

    Health has the names "" and `readiness` (ready for calls), `liveness` (needs no restart),
    `startup` (has been ready once), the full name of each service and the id of each model. All but
    `liveness` and `startup` change together.

    Args:
        service_names: Full names of the gRPC services that need a model.
    """

    def __init__(self, service_names: list[str]) -> None:
        self.health = HealthServicer()
        self._ready_names = ["", READINESS, *service_names]
        self._models: dict[str, ServedModel] = {}  # keyed by ids and aliases
        self._state = State.STARTING
        self._is_ready = False
        self._num_active = 0
        self._num_rejected = 0  # calls rejected while draining
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def state(self) -> State:
        return self._state

    @property
    def is_ready(self) -> bool:
        """True if the service is ready for calls, as its health reports it."""
        return self._is_ready

    @property
    def models(self) -> list[ServedModel]:
        """The served models, each once, in the order in which they were added."""
        return list({model.card.id: model for model in self._models.values()}.values())

    def add_service(self, name: str) -> None:
        """Report the health of one more gRPC service that needs a model.

        Args:
            name: Full name of the service. Call it before `start`.
        """
        self._ready_names.append(name)

    async def start(self) -> None:
        """Set the health to alive, but not ready.

        Call it before the server starts, because the initial status is SERVING.
        """
        await self._set_ready(is_ready=False)
        await self.health.set(STARTUP, NOT_SERVING)
        await self.health.set(LIVENESS, SERVING)

    async def serve(self, model: ServedModel) -> None:
        """Serve a model, and set the health to ready."""
        for name in (model.card.id, *model.card.aliases):
            self._models[name] = model
            self._ready_names.append(name)
        self._state = State.SERVING
        await self._set_ready(is_ready=True)
        await self.health.set(STARTUP, SERVING)

    async def set_available(self, *, is_available: bool) -> None:
        """Set the health to ready or not, after `serve`. Calls are admitted in either case."""
        await self._set_ready(is_ready=is_available)

    async def die(self) -> None:
        """Set the health to neither ready nor alive. Call it after the engine has failed."""
        await self._set_ready(is_ready=False)
        await self.health.set(LIVENESS, NOT_SERVING)

    async def drain(self, delay_s: float, timeout_s: float) -> None:
        """Finish the active calls and admit no new ones.

        Sets NOT_SERVING at once. Load balancers react late, so calls are admitted for `delay_s`
        more seconds. After that new calls are rejected. Then this method waits until the last
        response has been sent, at most `timeout_s` seconds, and until no new calls come, at most
        two seconds.
        """
        await self._set_ready(is_ready=False)
        await asyncio.sleep(delay_s)
        self._state = State.DRAINING
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        for _ in range(_MAX_QUIET_CHECKS):
            num_rejected = self._num_rejected
            await asyncio.sleep(_QUIET_S)
            if self._num_rejected == num_rejected:
                return

    def admit(self, name: str, context: Context) -> ServedModel:
        """Return the model called `name`. The call is active until its response has been sent.

        Raises:
            Starting: No model has been loaded yet.
            Draining: The service is draining.
            ModelNotFound: No model has this name.
        """
        if self._state is State.DRAINING:
            self._num_rejected += 1
            raise Draining
        model = self.find(name)
        self._num_active += 1
        self._idle.clear()
        done: Any = self._note_done  # the type stubs do not take a function
        context.add_done_callback(done)
        return model

    def find(self, name: str) -> ServedModel:
        """Return the model called `name`.

        Raises:
            Starting: No model has been loaded yet.
            ModelNotFound: No model has this name.
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
        self._is_ready = is_ready
        for name in self._ready_names:
            await self.health.set(name, SERVING if is_ready else NOT_SERVING)
