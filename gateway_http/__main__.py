"""Run the gateway: `python -m gateway_http --upstream host:port`."""

from chatrpc_process import first_process  # noqa: F401  # first: slow imports follow

# isort: split
import signal
import sys
from collections.abc import Sequence
from typing import Any

import structlog

from chatrpc_process.errors import ConfigError
from chatrpc_process.interpreter import take_short_turns
from chatrpc_process.logs.configuration import configure_logging
from chatrpc_process.logs.native import capture_native_log
from chatrpc_process.tracing.exporter import make_tracer
from gateway_http.app import Environment
from gateway_http.check import check
from gateway_http.config import Settings
from gateway_http.endpoints import ENDPOINTS
from gateway_http.http.endpoint import Endpoint
from gateway_http.server import Server

# Parsing an integer takes time that grows with the square of its length, under the interpreter's
# lock. No integer of a request needs more digits; Python allows no smaller limit. Integers in JSON
# schemas are passed on as text.
_MAX_INTEGER_DIGITS = 640

_log = structlog.get_logger("gateway_http.__main__")  # `__name__` is "__main__" here


def main(endpoints: Sequence[Endpoint] = ENDPOINTS) -> None:
    """Run the gateway until a signal. Exit with 2 for invalid settings, 1 for a port in use."""
    sys.set_int_max_str_digits(_MAX_INTEGER_DIGITS)
    try:
        settings = Settings.load(sys.argv[1:])
        if settings.check:
            sys.exit(check(settings).report())
        configure_logging(settings.log_level, settings.log_format)
        settings.log_warnings()
        tracer = make_tracer(settings.otlp_endpoint, "chatrpc-gateway")
        server = Server(settings, Environment(tracer=tracer, endpoints=endpoints))
        listener = server.bind()
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201  # logs may not be set up yet
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    capture_native_log()
    take_short_turns()
    _exit_zero_on_signals()
    host, port = listener.getsockname()[:2]
    _log.info("listening", host=host, port=port, **_origin_of_models(settings))
    if server.admin_address is not None:
        admin_host, admin_port = server.admin_address
        _log.info("listening_for_probes", host=admin_host, port=admin_port)
    try:
        server.run(sockets=[listener])
    finally:
        tracer.close()


def _origin_of_models(settings: Settings) -> dict[str, Any]:
    """Return the option that specifies the models, for the log."""
    if settings.registry is not None:
        return {"registry": str(settings.registry)}
    return {"models": settings.models} if settings.models else {"upstream": settings.upstream}


def _exit_zero_on_signals() -> None:
    """Make a signal exit with 0. uvicorn drains first, then raises the signal again."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))


if __name__ == "__main__":
    main()
