"""Starts the service: reads the settings, loads the model, and serves it until it drains.

Exit codes: 0 after a signal and the drain; 1 if the model cannot be loaded, an address cannot be
bound or the engine or backend fails; 2 if the settings are invalid.
"""

from chatrpc_process import first_process  # noqa: F401  # must precede the imports that take long

# isort: split
import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum

import structlog
import uvloop

from chatrpc_process.access.keys import KeyRing, load_keys
from chatrpc_process.check import check_listener
from chatrpc_process.errors import ConfigError
from chatrpc_process.files.watched import Watched, watching
from chatrpc_process.interpreter import take_short_turns
from chatrpc_process.logs.configuration import configure_logging
from chatrpc_process.logs.native import capture_native_log
from chatrpc_process.reload_metrics import ReloadMetrics
from chatrpc_process.tracing.exporter import make_tracer
from chatrpc_process.watchdog import watched_loop
from service.config import ServiceSettings
from service.domain.backend import ModelRuntime
from service.domain.timeouts import ClientTimeouts
from service.errors import ModelLoadError
from service.extensions import load_extensions
from service.metrics import Metrics
from service.metrics_port import MetricsPort
from service.openmp import bound_spinning
from service.rpc.calls.authorization import Access
from service.rpc.calls.rpcs import SERVICE_NAMES
from service.rpc.server import Server
from service.rpc.serving.lifecycle import Lifecycle
from service.runtimes import check_runtime, load_runtime_factory

log = structlog.get_logger("service.__main__")  # where `__name__` is "__main__"


def main() -> int:
    try:
        settings = ServiceSettings.load(sys.argv[1:])
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201  # logs are not set up yet
        return 2
    if settings.check:
        findings = check_listener(settings)
        findings.attempt(lambda: check_runtime(settings))
        findings.attempt(lambda: load_extensions(settings))
        return findings.report()
    configure_logging(settings.log_level, settings.log_format)
    capture_native_log()
    settings.log_warnings()
    bound_spinning()
    take_short_turns()
    try:
        return uvloop.run(_watched(settings))
    except (ConfigError, ModelLoadError, OSError) as error:
        log.error("start_failed", reason=str(error))  # noqa: TRY400  # the text is enough
        return 2 if isinstance(error, ConfigError) else 1
    except Exception:
        log.exception("unexpected_error")
        return 1


async def _watched(settings: ServiceSettings) -> int:
    with watched_loop(settings.loop_timeout_s):
        return await serve(settings)


async def serve(settings: ServiceSettings) -> int:
    """Serve until a signal comes or the engine or backend fails. Return the exit code.

    Raises:
        ConfigError: The engine cannot be imported, or the files of keys or certificates cannot be
            read.
        OSError: An address cannot be bound.
        ModelLoadError: The model cannot be served.
    """
    stop = _stop_signal()
    lifecycle = Lifecycle(SERVICE_NAMES)
    extensions = [make(lifecycle) for make in load_extensions(settings)]
    keys, metrics = _keys(settings), Metrics()
    tracer = make_tracer(settings.otlp_endpoint, "chatrpc-service")
    server = Server(
        lifecycle,
        request_timeout_s=settings.request_timeout_s,
        has_reflection=settings.reflection,
        access=Access(keys),
        metrics=metrics,
        client_timeouts=ClientTimeouts(settings.body_timeout_s, settings.write_timeout_s),
        tracer=tracer,
        has_channelz=settings.channelz,
        extensions=extensions,
        tls=settings.tls,
    )
    metrics.registry.register(ReloadMetrics(keys, identity=server.identity))
    metrics_port = MetricsPort(metrics.registry)
    await _listen(settings, server, metrics_port)
    runtime = load_runtime_factory(settings)()
    metrics.watch_engine(runtime.stats, settings.max_queue_size)
    service = _Service(settings, lifecycle, server, metrics, runtime)
    try:
        async with watching(keys, server.identity):
            outcome = await service.run(stop)
    finally:
        await server.stop()
        await metrics_port.stop()
        has_failed = not await runtime.stop()
        tracer.close()
        log.info("stopped")
    return 1 if has_failed else outcome.value


class _Outcome(Enum):
    """The reason why the service ends. Its value is the exit code."""

    STOPPED = 0
    BACKEND_FAILED = 1


@dataclass(frozen=True, slots=True)
class _Service:
    """Loads the model, serves it, and drains."""

    settings: ServiceSettings
    lifecycle: Lifecycle
    server: Server
    metrics: Metrics
    runtime: ModelRuntime

    async def run(self, stop: asyncio.Event) -> _Outcome:
        """Load the model and serve it until `stop` is set and requests have drained.

        Raises:
            ModelLoadError: The model cannot be served.
        """
        if not await _ends_first(self._load(), stop.wait()):
            return _Outcome.STOPPED
        following = asyncio.ensure_future(self._follow_availability())
        try:
            if await _ends_first(self.runtime.wait_dead(), stop.wait()):
                await self.lifecycle.die()
                return _Outcome.BACKEND_FAILED
        finally:
            following.cancel()
        if await _ends_first(self._drain(), self.runtime.wait_dead()):
            return _Outcome.STOPPED
        return _Outcome.BACKEND_FAILED

    async def _load(self) -> None:
        model = await self.runtime.load()
        # torch creates 200 000 objects. A full collection would visit them all and delay
        # every stream by 0.14 s. They live as long as the process does.
        gc.freeze()
        self.metrics.name_model(model.card.id)
        await self.lifecycle.serve(model)
        log.info("ready", model=model.card.id)

    async def _follow_availability(self) -> None:
        """Report the model as not ready while its backend is not available."""
        while True:
            for is_available in (False, True):
                await self.runtime.wait_available(is_available=is_available)
                await self.lifecycle.set_available(is_available=is_available)

    async def _drain(self) -> None:
        delay_s, timeout_s = self.settings.drain_delay_s, self.settings.drain_timeout_s
        log.info("draining", delay_s=delay_s, timeout_s=timeout_s)
        await self.server.drain(delay_s, timeout_s)


async def _listen(settings: ServiceSettings, server: Server, metrics_port: MetricsPort) -> None:
    """Listen on every port of the settings.

    Raises:
        OSError: An address cannot be bound.
    """
    port = await server.start(settings.host, settings.port)
    log.info("listening", host=settings.host, port=port)
    if settings.admin_port is not None:
        admin_port = await server.start_admin(settings.admin_host, settings.admin_port)
        log.info("listening_for_probes", host=settings.admin_host, port=admin_port)
    if settings.metrics_port is not None:
        bound = await metrics_port.start(settings.admin_host, settings.metrics_port)
        log.info("listening_for_metrics", host=settings.admin_host, port=bound)


def _keys(settings: ServiceSettings) -> Watched[KeyRing] | None:
    path = settings.api_keys
    return None if path is None else Watched(lambda: load_keys(path), path)


def _stop_signal() -> asyncio.Event:
    """Return an event that the first SIGINT or SIGTERM sets. A second one ends the process."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        stop.set()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    return stop


async def _ends_first(
    work: Coroutine[None, None, object], other: Coroutine[None, None, object]
) -> bool:
    """Run both until one ends, cancel the other, and return True if `work` has ended.

    Raises:
        Exception: The exception of the one that ended.
    """
    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(other)]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    ended = next(task for task in tasks if task in done)
    await ended
    return ended is tasks[0]


if __name__ == "__main__":
    exit_code = main()
    logging.shutdown()
    # sys.exit is not used: after a signal during the load, the engine's thread is inside torch, and
    # C++ aborts the process when the interpreter is finalized.
    os._exit(exit_code)
