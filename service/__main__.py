"""Composition root: settings -> model -> engine -> server; signals; exit codes.

Exit code 0 after an orderly stop, 1 if the model or the address cannot be had or the engine has
failed, 2 if the settings make no sense.
"""

from chatrpc_process import first_process  # noqa: F401  # before all that takes a while

# isort: split
import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Coroutine
from contextlib import suppress

import structlog
import uvloop

from chatrpc_process.access.keys import KeyRing, load_keys
from chatrpc_process.check import check_listener
from chatrpc_process.errors import ConfigError
from chatrpc_process.files.reload_metrics import ReloadMetrics
from chatrpc_process.files.watched import Watched, watching
from chatrpc_process.interpreter import take_short_turns
from chatrpc_process.logs.configuration import configure_logging
from chatrpc_process.logs.native import capture_native_log
from chatrpc_process.tracing.api import make_tracer
from chatrpc_process.watchdog import watched_loop
from service.config import ServiceSettings
from service.engine.async_engine import AsyncEngine
from service.errors import ModelLoadError
from service.metrics import Metrics
from service.metrics_port import MetricsPort
from service.model import ModelLoader
from service.openmp import bound_spinning
from service.rpc.calls.authorization import Access
from service.rpc.calls.message_reader import Patience
from service.rpc.server import SERVICE_NAMES, Server
from service.rpc.serving.lifecycle import Lifecycle

log = structlog.get_logger("service.__main__")  # where `__name__` is "__main__"


def main() -> int:
    try:
        settings = ServiceSettings.load(sys.argv[1:])
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201  # logs are not set up yet
        return 2
    if settings.check:
        return check_listener(settings).report()
    configure_logging(settings.log_level, settings.log_format)
    capture_native_log()
    settings.log_warnings()
    bound_spinning()
    take_short_turns()
    try:
        return uvloop.run(_watched(settings))
    except (ConfigError, ModelLoadError, OSError) as error:
        log.error("start_failed", reason=str(error))  # noqa: TRY400  # the text is the whole story
        return 2 if isinstance(error, ConfigError) else 1
    except Exception:
        log.exception("unexpected_error")
        return 1


async def _watched(settings: ServiceSettings) -> int:
    with watched_loop(settings.loop_timeout_s):
        return await serve(settings)


async def serve(settings: ServiceSettings) -> int:
    """Serve until a signal comes or the engine dies; the exit code.

    Raises:
        ConfigError: the files of keys or certificates cannot be read.
        OSError: an address cannot be bound.
        ModelLoadError: the model cannot be served.
    """
    stop = _stop_signal()
    lifecycle = Lifecycle(SERVICE_NAMES)
    keys, metrics = _keys(settings), Metrics()
    tracer = make_tracer(settings.otlp_endpoint, "chatrpc-service")
    server = Server(
        lifecycle,
        request_timeout_s=settings.request_timeout_s,
        has_reflection=settings.reflection,
        access=Access(keys),
        metrics=metrics,
        patience=Patience(settings.body_timeout_s, settings.write_timeout_s),
        tracer=tracer,
        has_channelz=settings.channelz,
        tls=settings.tls,
    )
    metrics.registry.register(ReloadMetrics(keys, identity=server.identity))
    metrics_port = MetricsPort(metrics.registry)
    await _listen(settings, server, metrics_port)
    loader = ModelLoader(settings)
    engine = AsyncEngine(
        loader.load,
        max_num_seqs=settings.max_num_seqs,
        max_queue_size=settings.max_queue_size,
        step_timeout_s=settings.step_timeout_s,
    )
    metrics.watch_engine(engine.stats, settings.max_queue_size)
    try:
        async with watching(keys, server.identity):
            code = await _live(settings, stop, lifecycle, server, metrics, loader, engine)
    finally:
        await server.stop()
        await metrics_port.stop()
        was_well = await engine.stop()
        tracer.close()
        log.info("stopped")
    return code if was_well else 1


async def _listen(settings: ServiceSettings, server: Server, metrics_port: MetricsPort) -> None:
    """Listen on every port that the settings ask for.

    Raises:
        OSError: an address cannot be bound.
    """
    port = await server.start(settings.host, settings.port)
    log.info("listening", host=settings.host, port=port)
    if settings.admin_port is not None:
        admin_port = await server.start_admin(settings.admin_host, settings.admin_port)
        log.info("listening_for_probes", host=settings.admin_host, port=admin_port)
    if settings.metrics_port is not None:
        bound = await metrics_port.start(settings.admin_host, settings.metrics_port)
        log.info("listening_for_metrics", host=settings.admin_host, port=bound)


async def _live(
    settings: ServiceSettings,
    stop: asyncio.Event,
    lifecycle: Lifecycle,
    server: Server,
    metrics: Metrics,
    loader: ModelLoader,
    engine: AsyncEngine,
) -> int:
    """Load the model and answer with it, until `stop` and a drain or until it dies; the exit code.

    Raises:
        ModelLoadError
    """
    if await _first(engine.start(), stop.wait()) == 1:
        return 0
    # torch alone leaves 200 000 objects behind: a full collection would look through them all, and
    # hold up every stream for 0.14 s. They live as long as the process does.
    gc.freeze()
    metrics.name_model(loader.model_id)
    await lifecycle.serve(loader.served(engine))
    log.info("ready", model=loader.model_id)
    if await _first(engine.wait_dead(), stop.wait()) == 0:
        await lifecycle.die()
        return 1
    log.info("draining", timeout_s=settings.drain_timeout_s)
    drain = server.drain(settings.drain_delay_s, settings.drain_timeout_s)
    return await _first(drain, engine.wait_dead())  # 1 if the engine did not last so long


def _keys(settings: ServiceSettings) -> Watched[KeyRing] | None:
    path = settings.api_keys
    return None if path is None else Watched(lambda: load_keys(path), path)


def _stop_signal() -> asyncio.Event:
    """Set by the first SIGINT or SIGTERM; a second one ends the process as if none had come."""
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


async def _first(*coroutines: Coroutine[None, None, object]) -> int:
    """Run all until one ends, cancel the others; the index of that one. Raises what it raised."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    index = min(tasks.index(task) for task in done)
    await tasks[index]
    return index


if __name__ == "__main__":
    exit_code = main()
    logging.shutdown()
    # Not sys.exit: a signal during the load leaves the engine's thread inside torch, and C++ aborts
    # when the interpreter is torn down beneath it.
    os._exit(exit_code)
