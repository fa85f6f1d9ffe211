"""Writes the log lines of gRPC's core and of other C and C++ libraries in the format of ours."""

import ctypes
import faulthandler
import os
import platform
import re
import threading

import structlog

from chatrpc_process.logs.limited import LimitedLog

# abseil's format: `I1130 08:57:49.212913    8606 ssl_transport_security.cc:2563] Handshake failed`
_ABSEIL = re.compile(r"([IWEF])\d{4} [\d:.]+ +\d+ ([^ :\]]+):\d+\] (.*)")
_LEVELS = {"I": "info", "W": "warning", "E": "error", "F": "critical"}
_HANDSHAKE_FAILED = "Handshake failed"
_MAX_LINE_CHARS = 500

log = structlog.get_logger(__name__)


def capture_native_log() -> None:
    """Turn everything that is written to C's `stderr` into log lines, until the process ends.

    Also, if a signal such as SIGSEGV or SIGABRT ends the process, Python writes the stacks of all
    threads to stderr.

    Only the stream of the C library is redirected, which glibc permits. File descriptor 2 is not:
    tracebacks of Python, panics of Rust and the last message of an abort are still written to it.
    In a pipe they would be lost when the process ends. Without glibc, nothing is redirected.
    """
    faulthandler.enable()
    if platform.libc_ver()[0] != "glibc":
        return
    reading, writing = os.pipe2(os.O_CLOEXEC)
    # If the pipe is full, messages are dropped: a writer may hold a lock and must not wait.
    os.set_blocking(writing, False)
    _redirect_stderr(writing)
    reader = threading.Thread(target=_read, args=(reading,), name="native-log", daemon=True)
    reader.start()


def _redirect_stderr(descriptor: int) -> None:
    """Replace the C library's `stderr` by a stream that writes to `descriptor`."""
    # https://sourceware.org/glibc/manual/latest/html_node/Standard-Streams.html
    libc = ctypes.CDLL(None)
    libc.fdopen.restype = ctypes.c_void_p
    stream = libc.fdopen(descriptor, b"w")
    libc.setlinebuf(ctypes.c_void_p(stream))
    ctypes.c_void_p.in_dll(libc, "stderr").value = stream


def _read(descriptor: int) -> None:
    limited = LimitedLog()
    with os.fdopen(descriptor, errors="replace") as lines:
        for line in lines:
            if text := line.strip():
                _write(limited, text[:_MAX_LINE_CHARS])


def _write(limited: LimitedLog, line: str) -> None:
    match = _ABSEIL.fullmatch(line)
    if match is None:
        limited.write(log.warning, "native_message", kind="", message=line)
        return
    severity, source, message = match.groups()
    if message.startswith(_HANDSHAKE_FAILED):
        limited.write(log.info, "grpc_tls_handshake_failed", kind=source, reason=message)
    else:
        write = getattr(log, _LEVELS[severity])
        limited.write(write, "native_message", kind=source, source=source, message=message)
