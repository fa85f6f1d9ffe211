"""The kinds of CPU that the kernels have code for.

This module imports nothing outside the standard library: the build of the wheel uses it too.
"""

from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class Level:
    """A set of CPU instructions that the kernels use if the CPU has them.

    Attributes:
        name: The value of the service's option `cpu_level`.
        machine: The architecture, as `platform.machine()` returns it on Linux.
        compiler_flags: Options of GCC and Clang.
        cpu_flags: The flags (`Features` on ARM) that the CPU must have in /proc/cpuinfo.
    """

    name: str
    machine: str
    compiler_flags: tuple[str, ...]
    cpu_flags: frozenset[str]


_AVX2_CPU = frozenset({"avx2", "bmi1", "bmi2", "fma", "f16c", "movbe", "abm"})
_AVX512_CPU = _AVX2_CPU | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_vnni"}
_BF16_CPU = _AVX512_CPU | {"avx512_bf16"}
_AMX_CPU = _BF16_CPU | {"amx_tile", "amx_int8", "amx_bf16"}
_VNNI = ("-march=x86-64-v4", "-mavx512vnni", "-mtune=icelake-server")
_BF16 = (*_VNNI, "-mavx512bf16")
_AMX = (*_BF16, "-mamx-tile", "-mamx-int8", "-mamx-bf16")

_DOT_CPU = frozenset({"asimd", "asimddp", "asimdrdm", "atomics", "crc32"})

# The most capable first.
LEVELS = (
    Level("amx", "x86_64", _AMX, _AMX_CPU),
    Level("bf16", "x86_64", _BF16, _BF16_CPU),
    Level("vnni", "x86_64", _VNNI, _AVX512_CPU),
    Level("avxvnni", "x86_64", ("-march=x86-64-v3", "-mavxvnni"), _AVX2_CPU | {"avx_vnni"}),
    Level("avx2", "x86_64", ("-march=x86-64-v3",), _AVX2_CPU),
    Level("i8mm", "aarch64", ("-march=armv8.2-a+dotprod+i8mm",), _DOT_CPU | {"i8mm"}),
    Level("dotprod", "aarch64", ("-march=armv8.2-a+dotprod",), _DOT_CPU),
)


@dataclass(frozen=True, slots=True)
class Cpu:
    """The first CPU of /proc/cpuinfo.

    Attributes:
        flags: The instructions that it has.
        identity: All fields on which `-march=native` depends, as text.
    """

    flags: frozenset[str]
    identity: str

    def levels(self) -> list[Level]:
        """Return the levels that the CPU can run, the most capable first."""
        return [level for level in LEVELS if self.flags >= level.cpu_flags]


def read_cpu() -> Cpu:
    """Read /proc/cpuinfo.

    Raises:
        OSError: The file cannot be read, because the system is not Linux.
    """
    lines = _CPUINFO.read_text().split("\n\n", maxsplit=1)[0].splitlines()
    fields = {name.strip(): value.strip() for name, _, value in (s.partition(":") for s in lines)}
    flags = fields.get("flags", fields.get("Features", ""))
    names = ("vendor_id", "cpu family", "model", "CPU implementer", "CPU part", "CPU variant")
    return Cpu(frozenset(flags.split()), "\n".join((*(fields.get(n, "") for n in names), flags)))


def missing_flags(level: Level, cpu_flags: Set[str]) -> str:
    """Return the flags that a CPU lacks for a level, separated by commas."""
    return ", ".join(sorted(level.cpu_flags - cpu_flags))
