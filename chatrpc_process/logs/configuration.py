"""Structured logs: one line for each event on stderr, as text for people or JSON for machines.

Our loggers come from `structlog.get_logger(__name__)`, those of libraries from `logging`. Both use
the same handler. Values bound to `structlog.contextvars`, such as the request id, are in
every line. The names of our events are constants in snake_case; alerts may search for them.
"""

import logging
import sys
from typing import Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

# The packages that `log_level` applies to. The lowest level of libraries is info: at debug, gRPC
# writes one or two lines for each call that contain no information about it.
_OUR_LOGGERS = ("__main__", "chatrpc_cli", "chatrpc_process", "gateway_http", "service")
# Libraries that log a line at info for each request or connection.
_NOISY_LOGGERS = ("asyncio", "httpx", "huggingface_hub", "urllib3", "uvicorn")

# Maximum length of a value. Clients send some values, such as the name of a model.
_MAX_VALUE_CHARS = 2000
# Fields that may have several lines, since their text does not come from clients.
_MULTILINE = frozenset({"exception", "stack"})


def configure_logging(level: LogLevel, log_format: LogFormat) -> None:
    """Write every log line of this process at `level` and above to stderr."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    renderers: list[Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if log_format == "json"
        else [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        ]
    )
    handler = _Handler(level, log_format)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _one_line,
                *renderers,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    _set_levels(logging.getLevelNamesMapping()[level.upper()])
    logging.captureWarnings(capture=True)


def configured_logging() -> tuple[LogLevel, LogFormat]:
    """Return the level and format of this process's log lines, for a process that it starts."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Handler):
            return handler.log_level, handler.log_format
    return "info", "text"


def printable(text: str, max_chars: int) -> str:
    """Return the first `max_chars` characters of a text, with unprintable ones escaped.

    So a line feed does not start a second log line, and no escape sequence reaches a terminal.
    """
    short = text if len(text) <= max_chars else text[:max_chars] + "..."
    if short.isprintable():
        return short
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in short
    )


class _Handler(logging.StreamHandler[TextIO]):
    """Writes log lines to stderr, and has their level and format."""

    def __init__(self, log_level: LogLevel, log_format: LogFormat) -> None:
        super().__init__(sys.stderr)
        self.log_level: LogLevel = log_level
        self.log_format: LogFormat = log_format


def _set_levels(level: int) -> None:
    logging.getLogger().setLevel(max(level, logging.INFO))
    for name in _OUR_LOGGERS:
        logging.getLogger(name).setLevel(level)
    for name in _NOISY_LOGGERS:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


def _one_line(_: WrappedLogger, __: str, fields: EventDict) -> EventDict:
    """Escape and shorten each text in a line."""
    for name, value in fields.items():
        if isinstance(value, str) and name not in _MULTILINE:
            fields[name] = printable(value, _MAX_VALUE_CHARS)
    return fields
