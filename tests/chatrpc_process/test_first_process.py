"""What a program does on a signal while it is still importing itself."""

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
def test_the_first_process_of_a_container_ends_in_order(pid: str, code: int) -> None:
    done = subprocess.run([sys.executable, "-c", CODE, pid], check=False, timeout=120)
    assert done.returncode == code


def test_it_is_the_first_thing_that_a_program_imports() -> None:
    """In time for a signal that comes while the others are loaded, for a second or more."""
    code = (
        "import sys; import service.__main__ as program;"
        "names = list(sys.modules); first = names.index('chatrpc_process.first_process');"
        "assert all(first < names.index(name) for name in ('asyncio', 'grpc', 'structlog'))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
