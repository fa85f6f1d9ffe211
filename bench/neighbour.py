"""Measures one stream with and without a busy neighbour: a process that keeps a core busy.

Every setting has its own process, which sleeps while others are measured. A round measures each
setting without the neighbour and directly afterwards with it, so that both see the same machine.
"""

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

_BUSY_LOOP = "while True: pass"


@dataclass(frozen=True, slots=True)
class Setting:
    """A way to run the engine: its quantization, and how OpenMP's threads wait."""

    quantization: str
    waiting: str
    environment: Mapping[str, str]

    @property
    def name(self) -> str:
        return f"{self.quantization}, {self.waiting}"


WAITING: Mapping[str, Mapping[str, str]] = {
    "as served": {},
    "100 000 spins": {"GOMP_SPINCOUNT": "100000"},
    "passive": {"OMP_WAIT_POLICY": "passive"},
}
SETTINGS = [
    Setting(quantization, waiting, environment)
    for quantization in ("int8", "none")
    for waiting, environment in WAITING.items()
]


@dataclass(frozen=True, slots=True)
class Rates:
    """Tokens per second, with one value for each round."""

    alone: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)

    @property
    def kept(self) -> float:
        """The rate of a stream with the neighbour, as a share of its rate without it."""
        return median(b / a for a, b in zip(self.alone, self.beside, strict=True))


async def measure(settings: Sequence[Setting], rounds: int, num_tokens: int) -> dict[str, Rates]:
    """Return the rates of each setting, by its name."""
    hosts = {setting.name: await _start(setting, num_tokens) for setting in settings}
    rates = {name: Rates() for name in hosts}
    try:
        for _ in range(rounds):
            for name, host in hosts.items():
                rates[name].alone.append(await _decode(host))
                neighbour = await asyncio.create_subprocess_exec(sys.executable, "-c", _BUSY_LOOP)
                try:
                    rates[name].beside.append(await _decode(host))
                finally:
                    neighbour.kill()
                    await neighbour.wait()
    finally:
        for host in hosts.values():
            host.kill()
            await host.wait()
    return rates


def table(rates: Mapping[str, Rates]) -> str:
    """Return a table of the median rates and the shares that remain with the neighbour."""
    lines = [f"{'setting':<24}{'alone tok/s':>14}{'beside tok/s':>14}{'kept':>8}"]
    lines += [
        f"{name:<24}{median(r.alone):>14.1f}{median(r.beside):>14.1f}{r.kept:>8.0%}"
        for name, r in rates.items()
    ]
    return "\n".join(lines)


async def _start(setting: Setting, num_tokens: int) -> asyncio.subprocess.Process:
    """Start a `bench.decode_host` that has loaded the embedded model and decoded once."""
    host = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.decode_host", setting.quantization, str(num_tokens)),
        env={**os.environ, **setting.environment},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    await _decode(host)
    return host


async def _decode(host: asyncio.subprocess.Process) -> float:
    """Make `host` decode one stream now. Return its tokens per second."""
    if host.stdin is None or host.stdout is None:
        raise ValueError("the host was started without pipes")
    host.stdin.write(b"\n")
    line = await host.stdout.readline()
    if not line:
        raise RuntimeError(f"bench.decode_host exited with code {await host.wait()}")
    return float(line)
