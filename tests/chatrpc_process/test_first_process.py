"""Signals to a program during its imports."""

import signal
import subprocess
import sys

import pytest

CODE = (
    "import os, signal, sys; pid = os.getpid(); os.getpid = lambda: int(sys.argv[1]) or pid;"
    "signal.signal(signal.SIGTERM, signal.SIG_DFL); import chatrpc_process.first_process;"
    "os.kill(pid, signal.SIGTERM); signal.pause()"
)


@pytest.mark.parametrize(("pid", "code"), [("1", 0), ("0", -signal.SIGTERM)])
def test_signal_ends_the_first_process_during_its_start(pid: str, code: int) -> None:
    done = subprocess.run([sys.executable, "-c", CODE, pid], check=False, timeout=120)
    assert done.returncode == code


def test_first_process_is_imported_first() -> None:
    """Other imports take a second or more, in which a signal may arrive."""
    code = (
        "import sys; import service.__main__ as program;"
        "names = list(sys.modules); first = names.index('chatrpc_process.first_process');"
        "assert all(first < names.index(name) for name in ('asyncio', 'grpc', 'structlog'))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
