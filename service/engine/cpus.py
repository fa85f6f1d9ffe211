"""How many CPUs the process may use, as the kernel and the container tell it."""

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def available_cpus(cgroup: Path = _CGROUP) -> int:
    """The CPUs that the process may run on, within the time that its container may spend on them.

    torch counts the cores of the host: in a container that may use 2 of 64, its threads would wait
    for one another through most of every step.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = _quota(cgroup)
    limits = [allowed or 1] if quota is None else [allowed or 1, math.ceil(quota)]
    return max(1, min(limits))


def _quota(cgroup: Path) -> float | None:
    """CPUs' worth of time that the control group may use; None where it sets no limit."""
    quota = _quota_v2(cgroup)
    return _quota_v1(cgroup / "cpu") if quota is None else quota


def _quota_v2(cgroup: Path) -> float | None:
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except OSError:
        return None
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(cgroup: Path) -> float | None:
    try:
        quota = int((cgroup / "cpu.cfs_quota_us").read_text())
        period = int((cgroup / "cpu.cfs_period_us").read_text())
    except OSError:
        return None
    return None if quota < 0 else quota / period
