"""How much memory there is left, as the kernel, the container or the device tells it."""

from pathlib import Path

import torch

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


def available_memory(device: torch.device, cgroup: Path = _CGROUP, meminfo: Path = _MEMINFO) -> int:
    """Bytes that can still be allocated on `device`: for a CPU, within the container's limit."""
    if device.type == "cuda":
        free, _total = torch.cuda.mem_get_info(device)
        return free
    on_host, in_cgroup = _available_on_host(meminfo), _available_in_cgroup(cgroup)
    return on_host if in_cgroup is None else min(on_host, in_cgroup)


def _available_on_host(meminfo: Path) -> int:
    fields = _read_fields(meminfo)
    if "MemAvailable:" not in fields:
        raise OSError(f"{meminfo} does not give MemAvailable")
    return fields["MemAvailable:"] * 1024


def _available_in_cgroup(cgroup: Path) -> int | None:
    """What the process's control group (version 2) leaves; None where it sets no limit.

    The kernel drops inactive pages of files, such as the checkpoint just read, before the limit
    hurts, so they do not count as used; the kubelet reckons likewise.
    """
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
        reclaimable = _read_fields(cgroup / "memory.stat")["inactive_file"]
    except OSError:
        return None
    return None if limit == "max" else max(0, int(limit) - used + reclaimable)


def _read_fields(path: Path) -> dict[str, int]:
    """A file of lines that are a name and a number."""
    return {name: int(value) for name, value, *_ in map(str.split, path.read_text().splitlines())}
