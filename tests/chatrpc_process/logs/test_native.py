"""Log lines of gRPC's core and of other libraries."""

import asyncio
import json
import re
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.fakes.wait import failsafe
from tests.support.tls_files import issue

_SCRIPT = """
import ctypes, os, sys, threading, time
from chatrpc_process.logs.configuration import configure_logging
from chatrpc_process.logs.native import capture_native_log
configure_logging("info", "json")
capture_native_log()
libc = ctypes.CDLL(None)
stderr = ctypes.c_void_p.in_dll(libc, "stderr")

def put(text):
    libc.fputs(text.encode(), stderr)

def wait():
    print("done", flush=True)
    sys.stdin.read()
"""
# A program that serves TLS, prints its port, and ends when its stdin is closed.
_SERVER = """
import asyncio, grpc

async def serve():
    key, certificate = (open(path, "rb").read() for path in sys.argv[1:3])
    server = grpc.aio.server()
    port = server.add_secure_port(
        "127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)])
    )
    await server.start()
    print(port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)

asyncio.run(serve())
"""


async def start(code: str, *arguments: object) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    command = [sys.executable, "-c", _SCRIPT + code, *map(str, arguments)]
    return await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe)


async def line_of(process: asyncio.subprocess.Process) -> Any:
    """Return the next line of the log. Other lines fail the test."""
    assert process.stderr
    async with failsafe():
        return json.loads(await process.stderr.readline())


async def end(process: asyncio.subprocess.Process) -> bytes:
    """Let the process end, and return the rest of its stderr."""
    async with failsafe():
        _, rest = await process.communicate(b"")
    assert process.returncode == 0
    return rest


async def test_failed_tls_handshake_is_a_log_line(tmp_path: Path) -> None:
    files = issue(trustme.CA(), tmp_path)
    process = await start(_SERVER, files.key, files.certificate)
    assert process.stdout
    port = int(await process.stdout.readline())
    for _ in range(5):
        await asyncio.to_thread(fail_handshake, port)
    entry = await line_of(process)
    assert entry["event"] == "grpc_tls_handshake_failed"
    assert entry["level"] == "info"
    assert "SSL_ERROR_SSL" in entry["reason"]
    assert await end(process) == b""  # the others are suppressed


def fail_handshake(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection, pytest.raises(ssl.SSLError):
        ssl.create_default_context().wrap_socket(connection, server_hostname="localhost")


@pytest.mark.parametrize(
    ("letter", "level"), [("I", "info"), ("W", "warning"), ("E", "error"), ("F", "critical")]
)
async def test_line_of_core_keeps_its_level_and_source(letter: str, level: str) -> None:
    line = f"{letter}1130 08:57:49.212913    8606 add_port.cc:83] No address\\n"
    process = await start(f"put('{line}'); wait()")
    entry = await line_of(process)
    assert (entry["event"], entry["level"]) == ("native_message", level)
    assert (entry["source"], entry["message"]) == ("add_port.cc", "No address")
    await end(process)


async def test_other_line_of_a_library_is_a_warning() -> None:
    process = await start("put('libgomp: out of threads\\n'); wait()")
    entry = await line_of(process)
    assert (entry["event"], entry["level"]) == ("native_message", "warning")
    assert entry["message"] == "libgomp: out of threads"
    await end(process)


async def test_flood_neither_blocks_the_writer_nor_fills_the_log() -> None:
    """The writer has the interpreter's lock, so the pipe is not read meanwhile."""
    code = """
hold = ctypes.PyDLL(None)
for _ in range(100_000):
    hold.fputs(b"libgomp: again and again and again\\n", stderr)
wait()
"""
    process = await start(code)
    assert process.stdout
    async with failsafe():
        assert await process.stdout.readline() == b"done\n"
    assert (await line_of(process))["message"] == "libgomp: again and again and again"
    rest = (await end(process)).splitlines()
    assert len(rest) <= 3


def died(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _SCRIPT + code]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_last_message_of_an_abort_is_written() -> None:
    """Rust writes such a message when there is no memory, and aborts."""
    done = died("os.write(2, b'memory allocation of 1 bytes failed\\n'); libc.abort()")
    assert done.returncode == -signal.SIGABRT
    assert "memory allocation of 1 bytes failed\n" in done.stderr
    assert "Fatal Python error: Aborted" in done.stderr
    assert re.search('File "<string>", line \\d+ in <module>', done.stderr)


def test_stack_of_a_process_that_crashes_is_written() -> None:
    done = died("ctypes.string_at(0)")
    assert done.returncode == -signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in done.stderr


def test_traceback_of_python_stays_on_stderr() -> None:
    done = died("raise ValueError('unforeseen')")
    assert done.stderr.endswith("ValueError: unforeseen\n")
