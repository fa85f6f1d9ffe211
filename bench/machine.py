"""Collects the facts about the machine of a run, and measures its limits."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import msgspec
import psutil

from bench.results import Limits, Machine

# The vector and matrix units that inference kernels use.
_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "sve",
)


def limits() -> Limits | None:
    """Return the limits that `bench.limits` measures, or None if it fails."""
    command = [sys.executable, "-m", "bench.limits"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        return None
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=Limits)


def facts() -> Machine:
    info = cpu_info(Path("/proc/cpuinfo").read_text())
    flags = (info.get("flags") or info.get("Features") or "").split()
    return Machine(
        cpu=info.get("model name", platform.machine()),
        num_cores=len(os.sched_getaffinity(0)),
        flags=[flag for flag in _FLAGS if flag in flags],
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        kernel=platform.release(),
        python=platform.python_version(),
    )


def cpu_info(text: str) -> dict[str, str]:
    """Return the fields of /proc/cpuinfo for the first core."""
    lines = text.split("\n\n", maxsplit=1)[0].splitlines()
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}
