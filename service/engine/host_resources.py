"""CPUs and memory that the process may use, within the limits of its container."""

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


def available_cpus(cgroup: Path = _CGROUP) -> int:
    """Return the number of CPUs that the process may use, at least 1.

    It is the smaller of the CPU affinity and the CPU time limit of the control group, rounded up.
    """
    # torch counts the cores of the host. In a container that may use 2 of 64, its threads would
    # wait for one another during most of each step.
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = _cpu_quota(cgroup)
    limits = [allowed or 1] if quota is None else [allowed or 1, math.ceil(quota)]
    return max(1, min(limits))


def available_memory(cgroup: Path = _CGROUP, meminfo: Path = _MEMINFO) -> int:
    """Return the number of bytes that the process can still allocate.

    It is the smaller of the host's available memory and what the control group allows.

    Raises:
        OSError: `meminfo` cannot be read, or has no `MemAvailable`.
    """
    on_host, in_cgroup = _available_on_host(meminfo), _available_in_cgroup(cgroup)
    return on_host if in_cgroup is None else min(on_host, in_cgroup)


def _cpu_quota(cgroup: Path) -> float | None:
    """Return the CPU time limit of the control group, in CPUs; None if there is no limit."""
    quota = _cpu_quota_v2(cgroup)
    return _cpu_quota_v1(cgroup / "cpu") if quota is None else quota


def _cpu_quota_v2(cgroup: Path) -> float | None:
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except OSError:
        return None
    return None if quota == "max" else int(quota) / int(period)


def _cpu_quota_v1(cgroup: Path) -> float | None:
    try:
        quota = int((cgroup / "cpu.cfs_quota_us").read_text())
        period = int((cgroup / "cpu.cfs_period_us").read_text())
    except OSError:
        return None
    return None if quota < 0 else quota / period


def _available_on_host(meminfo: Path) -> int:
    fields = _read_fields(meminfo)
    if "MemAvailable:" not in fields:
        raise OSError(f"{meminfo} does not contain MemAvailable")
    return fields["MemAvailable:"] * 1024


def _available_in_cgroup(cgroup: Path) -> int | None:
    """Return the bytes left in the control group (version 2); None if it has no limit.

    Inactive file pages, such as those of the checkpoint just read, do not count as used: the kernel
    frees them before it enforces the limit. The kubelet computes usage in the same way.
    """
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
        reclaimable = _read_fields(cgroup / "memory.stat")["inactive_file"]
    except OSError:
        return None
    return None if limit == "max" else max(0, int(limit) - used + reclaimable)


def _read_fields(path: Path) -> dict[str, int]:
    """Return the numbers in a file by name. Each line of it is a name and a number."""
    return {name: int(value) for name, value, *_ in map(str.split, path.read_text().splitlines())}
