"""The models that the gateway hosts: loads them on demand, and unloads them to make room.

`schedule.py` decides when. Everything here runs on one event loop.
"""

import asyncio
import itertools
import math
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from contextvars import Context
from dataclasses import dataclass
from typing import NamedTuple

import grpc
import structlog

from chatrpc.v1 import model_service_pb2
from gateway_http.metrics import HostedModelStatus, Metrics
from gateway_http.protocol.error import ApiError, ServiceUnavailable
from gateway_http.upstream.client import CallOptions, Upstream
from gateway_http.upstream.connection import Connection
from gateway_http.upstream.hosted.memory import estimated_bytes
from gateway_http.upstream.hosted.process import Launch, ModelProcess
from gateway_http.upstream.hosted.schedule import Changes, Snapshot, State, decide
from gateway_http.upstream.registry import HostedModel
from gateway_http.upstream.rpcs import GET_MODEL, Request, Response, Rpc

_log = structlog.get_logger(__name__)

# The interval at which a starting service is tried to be reached.
_POLL_S = 0.1
_DESCRIBE_TIMEOUT_S = 5.0
# The memory of loaded models is measured again after this time, when a request ends.
_MEASURE_INTERVAL_S = 1.0
# After failed starts in a row, the model is not started again for 1 s, 2 s, 4 s and so on.
_FIRST_BACKOFF_S = 1.0
_LONGEST_BACKOFF_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HostingOptions:
    """The limits of hosted models.

    Attributes:
        budget_bytes: Memory of all loaded models together; infinity if there is no limit.
        idle_timeout_s: Time without requests after which a model is unloaded; 0 if it never is.
        load_timeout_s: Maximum time in seconds for which a request waits for its model, and for
            which a process may take until it is ready.
        max_waiting: Maximum number of requests that wait for one model.
        progress_interval_s: Interval in seconds at which a waiting stream reports progress.
        stop_timeout_s: Time in seconds in which a process must end when it is asked to.
    """

    budget_bytes: float = math.inf
    idle_timeout_s: float = 300.0
    load_timeout_s: float = 600.0
    max_waiting: int = 256
    progress_interval_s: float = 5.0
    stop_timeout_s: float = 10.0


class LoadStatus(NamedTuple):
    """The state of a hosted model for clients.

    Attributes:
        failure: Why its last start failed; "" if it did not.
        duration_s: Time since the last change of the state, in seconds.
    """

    state: State
    failure: str = ""
    duration_s: float = 0.0


class _Run:
    """A process of a model, while it serves.

    Attributes:
        num_calls: Number of running requests.
        idle: Set while there is none.
    """

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.num_calls = 0
        self.idle = asyncio.Event()
        self.idle.set()

    def begin(self) -> None:
        self.num_calls += 1
        self.idle.clear()

    def end(self) -> None:
        self.num_calls -= 1
        if self.num_calls == 0:
            self.idle.set()


class _Slot:
    """A hosted model, its process if it has one, and the requests that wait for it."""

    def __init__(self, key: str, model: HostedModel, now_s: float) -> None:
        self.key = key  # unique: a model that is replaced by one of its name exists until its end
        self.model = model
        self.state = State.UNLOADED
        self.changed_s = now_s  # time of the last change of the state
        self.last_used_s = now_s
        self.memory_bytes = model.memory_bytes
        self.waiting: dict[asyncio.Future[_Run], float] = {}  # each with the time of its arrival
        self.run: _Run | None = None
        self.process: ModelProcess | None = None
        self.task: asyncio.Task[None] | None = None
        self.stop = asyncio.Event()
        self.failure = ""
        self.num_failures = 0
        self.retry_s = 0.0  # the time from which on it may be started again
        self.description: model_service_pb2.Model | None = None
        self.is_removed = False

    def take_waiting(self) -> "list[asyncio.Future[_Run]]":
        """Remove the requests that wait. Return those that have no result yet."""
        waiting = [future for future in self.waiting if not future.done()]
        self.waiting.clear()
        return waiting

    def measure(self) -> None:
        """Replace the estimate of its memory with its resident memory, unless it is configured."""
        if self.model.memory_bytes is None and self.process is not None:
            self.memory_bytes = self.process.memory_bytes() or self.memory_bytes


class HostedModels:
    """The hosted models and their processes. Create, use and close it within one event loop.

    Args:
        launch: Starts the process of a model.
        options: The limits.
        metrics: The gateway's metrics.
    """

    def __init__(self, launch: Launch, options: HostingOptions, metrics: Metrics) -> None:
        self._launch = launch
        self._options = options
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._slots: dict[HostedModel, _Slot] = {}
        self._numbers = itertools.count()
        self._draining: frozenset[str] = frozenset()
        self._timer: asyncio.TimerHandle | None = None
        self._measured_s = -math.inf
        self._retiring: set[asyncio.Task[None]] = set()
        self._is_closed = False
        metrics.watch_hosted_models(self._statuses)

    def adopt(self, models: Sequence[HostedModel]) -> None:
        """Replace the models. One that is removed is unloaded after its requests have ended."""
        wanted = set(models)
        for model in wanted - self._slots.keys():
            key = f"{model.name} {next(self._numbers)}"
            slot = self._slots[model] = _Slot(key, model, self._loop.time())
            if slot.memory_bytes is None:
                slot.memory_bytes = estimated_bytes(model.model, model.arguments)
            if slot.memory_bytes > self._options.budget_bytes:
                _log.warning(
                    "hosted_model_exceeds_memory",
                    model=model.name,
                    memory_bytes=slot.memory_bytes,
                    budget_bytes=int(self._options.budget_bytes),
                )
        for model, slot in self._slots.items():
            slot.is_removed = model not in wanted
        self._act()

    def status(self, model: HostedModel) -> LoadStatus:
        """Return the state of a model."""
        slot = self._slots.get(model)
        if slot is None:
            return LoadStatus(State.UNLOADED)
        return LoadStatus(slot.state, slot.failure, self._loop.time() - slot.changed_s)

    def upstream(self, model: HostedModel) -> "HostedUpstream":
        """Return an upstream whose calls load the model if needed."""
        return HostedUpstream(self, model, self._options.progress_interval_s)

    def loaded(self, model: HostedModel) -> Upstream | None:
        """Return the channel to the model's service if it is loaded. Calls on it do not count as
        requests, so they do not keep the model loaded."""
        slot = self._slots.get(model)
        return None if slot is None or slot.run is None else slot.run.upstream

    def description(self, model: HostedModel) -> model_service_pb2.Model | None:
        """Return the last known description of a model by its service; None if there is none."""
        slot = self._slots.get(model)
        return None if slot is None else slot.description

    def note_description(self, model: HostedModel, description: model_service_pb2.Model) -> None:
        """Keep the description of a model for the time in which it is not loaded."""
        slot = self._slots.get(model)
        if slot is not None:
            slot.description = description

    @contextmanager
    def use(self, model: HostedModel) -> "Iterator[asyncio.Future[_Run]]":
        """Provide a future of the process that serves a model. The context counts as one request.

        The model is not unloaded before the end of the context, if the future has a result. The
        future fails with an ApiError if the model cannot be loaded, or if that takes too long.
        """
        future: asyncio.Future[_Run] = self._loop.create_future()
        slot = self._slots.get(model)
        if slot is None or self._is_closed:
            raise ServiceUnavailable(f"The model `{model.name}` is not served any more.")
        self._enter(slot, future)
        limit = self._loop.call_later(self._options.load_timeout_s, self._expire, slot, future)
        try:
            yield future
        finally:
            limit.cancel()
            self._leave(slot, future)

    async def close(self) -> None:
        """End all processes. Waiting requests fail."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        for slot in self._slots.values():
            for future in slot.take_waiting():
                future.set_exception(ServiceUnavailable("The gateway is shutting down."))
            slot.stop.set()
        tasks = [slot.task for slot in self._slots.values() if slot.task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)
        for retiring in self._retiring:
            retiring.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)

    def _enter(self, slot: _Slot, future: "asyncio.Future[_Run]") -> None:
        """Grant the process to a request, or let the request wait for it.

        Raises:
            ServiceUnavailable: The last start failed a short time ago, or too many requests wait.
        """
        now_s = self._loop.time()
        if slot.run is not None and slot.key not in self._draining:
            slot.run.begin()
            future.set_result(slot.run)
            return
        if now_s < slot.retry_s:
            raise _load_failed(slot, slot.retry_s - now_s)
        if len(slot.waiting) >= self._options.max_waiting:
            raise ServiceUnavailable(
                f"Too many requests wait for the model `{slot.model.name}` to be loaded.",
                "server_is_overloaded",
                reason="QUEUE_FULL",
            )
        slot.waiting[future] = now_s
        self._act()

    def _leave(self, slot: _Slot, future: "asyncio.Future[_Run]") -> None:
        slot.waiting.pop(future, None)
        if future.cancel() or future.cancelled() or future.exception() is not None:
            self._act()  # nothing may wait for the model any more
            return
        future.result().end()
        slot.last_used_s = self._loop.time()
        if slot.last_used_s >= self._measured_s + _MEASURE_INTERVAL_S:
            self._measured_s = slot.last_used_s
            for each in self._slots.values():
                each.measure()
        self._act()

    def _expire(self, slot: _Slot, future: "asyncio.Future[_Run]") -> None:
        if not future.done():
            name, timeout_s = slot.model.name, self._options.load_timeout_s
            message = f"The model `{name}` could not be loaded within {timeout_s:g} s."
            future.set_exception(
                ApiError(504, message, kind="server_error", code="timeout", reason="LOAD_TIMEOUT")
            )

    def _act(self) -> None:
        """Carry out what `decide` returns for the present state."""
        if self._is_closed:
            return
        now_s = self._loop.time()
        for model, slot in list(self._slots.items()):
            if slot.is_removed and slot.task is None and not slot.waiting:
                del self._slots[model]
        slots = {slot.key: slot for slot in self._slots.values()}
        snapshots = [self._snapshot(slot) for slot in slots.values()]
        changes = decide(snapshots, self._options.budget_bytes, now_s)
        self._draining = changes.drain
        self._change(slots, changes)
        for slot in slots.values():
            if slot.run is not None and slot.key not in self._draining:
                self._grant(slot, slot.run)
        self._set_timer()

    def _change(self, slots: "dict[str, _Slot]", changes: Changes) -> None:
        for name in changes.unload:
            slot = slots[name]
            self._set_state(slot, State.UNLOADING)
            slot.run = None
            slot.stop.set()
        for name in changes.load:
            slot = slots[name]
            self._set_state(slot, State.LOADING)
            slot.stop.clear()
            # Its log lines are not those of the request that caused it.
            slot.task = asyncio.create_task(self._serve(slot), context=Context())

    def _snapshot(self, slot: _Slot) -> Snapshot:
        idle_timeout_s = slot.model.idle_timeout_s
        if idle_timeout_s is None:
            idle_timeout_s = self._options.idle_timeout_s
        if slot.is_removed:
            idle_timeout_s = 0.0
        elif idle_timeout_s == 0:
            idle_timeout_s = math.inf
        arrivals = [since_s for future, since_s in slot.waiting.items() if not future.done()]
        return Snapshot(
            name=slot.key,
            state=slot.state,
            memory_bytes=slot.memory_bytes or 0,
            num_calls=0 if slot.run is None else slot.run.num_calls,
            waiting_since_s=min(arrivals, default=None),
            last_used_s=slot.last_used_s,
            idle_timeout_s=idle_timeout_s,
        )

    def _set_timer(self) -> None:
        """Act again when the next idle model expires."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        expires_s = min(
            (self._snapshot(slot).expires_s for slot in self._slots.values()), default=math.inf
        )
        if expires_s < math.inf:
            self._timer = self._loop.call_at(expires_s, self._act, context=Context())

    def _set_state(self, slot: _Slot, state: State) -> None:
        slot.state, slot.changed_s = state, self._loop.time()
        _log.info("hosted_model_state", model=slot.model.name, state=state.value)

    def _grant(self, slot: _Slot, run: _Run) -> None:
        """Give the process to all requests that wait for it."""
        for future in slot.take_waiting():
            run.begin()
            future.set_result(run)

    async def _serve(self, slot: _Slot) -> None:
        """Run one process of a model: from its start to its end."""
        failure = ""
        await self._wait_for_port(slot)
        try:
            process = await self._launch(slot.model)
        except OSError as error:
            failure = f"The process cannot be started: {error.strerror}."
        except ValueError as error:  # an argument contains a null byte
            failure = f"The process cannot be started: {error}."
        else:
            slot.process = process
            ended = asyncio.ensure_future(process.wait())
            try:
                failure = await self._serve_until_ended(slot, process, ended)
            except Exception:
                _log.exception("unexpected_error")
                failure = "An unexpected error occurred."
            finally:
                await self._end(process, ended)
        slot.process, slot.task = None, None
        self._set_state(slot, State.UNLOADED)
        if failure:
            self._note_failure(slot, failure)
        self._act()

    async def _wait_for_port(self, slot: _Slot) -> None:
        """Wait for the ends of other processes with the port of a model.

        They are those of the entries that it has replaced. Until they end, calls on the port would
        reach them.
        """
        others = [
            each.task
            for each in self._slots.values()
            if each is not slot and each.task is not None and each.model.port == slot.model.port
        ]
        if slot.model.port is not None and others:
            await asyncio.wait(others, timeout=self._options.load_timeout_s)

    async def _serve_until_ended(
        self, slot: _Slot, process: ModelProcess, ended: "asyncio.Task[str]"
    ) -> str:
        """Serve a model until its process ends or is to be stopped.

        Returns:
            Why the process did not become ready; "" if it did, or if it was stopped before.
        """
        connecting = asyncio.ensure_future(_connected(process.target))
        stopping = asyncio.ensure_future(slot.stop.wait())
        timeout_s = self._options.load_timeout_s
        try:
            await asyncio.wait(
                {connecting, ended, stopping},
                timeout=timeout_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if not connecting.done():
                if stopping.done():
                    return ""
                late = f"The process was not ready within {timeout_s:g} s."
                return ended.result() if ended.done() else late
            run = _Run(connecting.result())
            try:
                self._note_loaded(slot, run)
                await self._describe(slot, run)
                await asyncio.wait({ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if not stopping.done():
                    _log.error("hosted_model_died", model=slot.model.name, reason=ended.result())
                    self._metrics.hosted_ends.labels(slot.model.name, "died").inc()
                else:
                    self._metrics.hosted_ends.labels(slot.model.name, "unloaded").inc()
            finally:
                slot.run = None
                self._retire(run)
            return ""
        finally:
            connecting.cancel()
            stopping.cancel()
            await asyncio.gather(connecting, stopping, return_exceptions=True)

    def _note_loaded(self, slot: _Slot, run: _Run) -> None:
        _log.info(
            "hosted_model_loaded",
            model=slot.model.name,
            duration_s=round(self._loop.time() - slot.changed_s, 1),
        )
        self._metrics.hosted_starts.labels(slot.model.name, "ok").inc()
        slot.measure()
        slot.run, slot.failure, slot.num_failures = run, "", 0
        self._set_state(slot, State.LOADED)
        slot.last_used_s = self._loop.time()
        # They are granted even if another model waits for the memory: it would be unloaded without
        # having served any request.
        self._grant(slot, run)
        self._act()

    async def _describe(self, slot: _Slot, run: _Run) -> None:
        """Keep the service's description. A service with keys does not describe it without one."""
        request = model_service_pb2.GetModelRequest(id=slot.model.name)
        with suppress(grpc.aio.AioRpcError):
            response = await run.upstream.call(GET_MODEL, request, CallOptions(_DESCRIBE_TIMEOUT_S))
            slot.description = response.model

    def _note_failure(self, slot: _Slot, failure: str) -> None:
        _log.error("hosted_model_start_failed", model=slot.model.name, reason=failure)
        self._metrics.hosted_starts.labels(slot.model.name, "failed").inc()
        slot.failure = failure
        backoff_s = min(_FIRST_BACKOFF_S * 2**slot.num_failures, _LONGEST_BACKOFF_S)
        slot.num_failures += 1
        slot.retry_s = self._loop.time() + backoff_s
        for future in slot.take_waiting():
            future.set_exception(_load_failed(slot, backoff_s))

    def _retire(self, run: _Run) -> None:
        """Close the channel to a process after the last request on it has ended."""

        async def close() -> None:
            try:
                await run.idle.wait()
            finally:
                # Calls that do not count as requests get time to end, or to fail with the process.
                # Those that the channel cancels would end their HTTP requests without a response.
                await run.upstream.close(_DESCRIBE_TIMEOUT_S)

        retiring = asyncio.ensure_future(close())
        self._retiring.add(retiring)
        retiring.add_done_callback(self._retiring.discard)

    async def _end(self, process: ModelProcess, ended: "asyncio.Task[str]") -> None:
        process.terminate()
        await asyncio.wait({ended}, timeout=self._options.stop_timeout_s)
        if not ended.done():
            _log.warning("hosted_model_killed", timeout_s=self._options.stop_timeout_s)
            process.kill()
        await ended

    def _statuses(self) -> Iterator[HostedModelStatus]:
        for slot in self._slots.values():
            yield HostedModelStatus(
                slot.model.name,
                slot.state.value,
                0 if slot.process is None else slot.process.memory_bytes(),
                len(slot.waiting),
            )


class HostedUpstream:
    """Calls on a hosted model, which load it if needed. It has the methods of `Upstream`.

    Every method raises ApiError if the model cannot be loaded.
    """

    def __init__(
        self, models: HostedModels, model: HostedModel, progress_interval_s: float
    ) -> None:
        self._models = models
        self._model = model
        self._progress_interval_s = progress_interval_s

    @property
    def progress(self) -> str:
        """A text about the model, which a waiting stream sends."""
        status = self._models.status(self._model)
        return f"{self._model.name} is {status.state.value} for {status.duration_s:.0f} s"

    async def call(
        self, rpc: Rpc[Request, Response], request: Request, options: CallOptions
    ) -> Response:
        """Return the response of an RPC that is not streamed."""
        with self._models.use(self._model) as ready:
            run = await ready
            return await run.upstream.call(rpc, request, options)

    async def stream(
        self, rpc: Rpc[Request, Response], request: Request, options: CallOptions
    ) -> AsyncGenerator[Response | None, None]:
        """Yield the responses of a streamed RPC, as `Upstream.stream` does.

        While the model is being loaded, an item is None at intervals. So a request may still be
        rejected after the first item.
        """
        with self._models.use(self._model) as ready:
            while True:
                await asyncio.wait({ready}, timeout=self._progress_interval_s)
                if ready.done():
                    break
                yield None
            async with aclosing(ready.result().upstream.stream(rpc, request, options)) as responses:
                async for response in responses:
                    yield response


def _load_failed(slot: _Slot, retry_after_s: float) -> ServiceUnavailable:
    return ServiceUnavailable(
        f"The model `{slot.model.name}` could not be loaded: {slot.failure}",
        "model_load_failed",
        retry_after_s=max(1, math.ceil(retry_after_s)),
    )


async def _connected(target: str) -> Upstream:
    """Return a channel to a service that is ready. Wait until it is."""
    host, _, port = target.rpartition(":")
    # A channel that is created before the service listens would try again only after seconds.
    while True:
        try:
            _, writer = await asyncio.open_connection(host, int(port))
        except OSError:
            await asyncio.sleep(_POLL_S)
        else:
            writer.close()
            break
    upstream = Upstream(Connection(target))
    try:
        await upstream.wait_connected()
    except BaseException:
        await upstream.close()
        raise
    return upstream
