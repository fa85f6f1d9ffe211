"""The servers of a run and their loads."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from bench import ours
from bench.contest import Entry
from bench.peers import llama_cpp, transformers_serve, vllm
from bench.peers.environment import InstallError, root
from bench.server import Server

BASELINE = "chatrpc"
# The loads that every server gets.
COMMON = ("c1", "c8", "c32", "long", "turns", "stall")
OPEN = ("open-2", "open-6")
OURS_ALONE = ("edit",)
LAYERS = ("c32",)


def our_entries(variants: Iterable[str]) -> list[Entry]:
    """Return our variants. The default one has all loads and layers, others their own loads."""
    entries = []
    for variant in variants:
        server = ours.server(variant)
        if variant == BASELINE:
            loads = (*COMMON, *OURS_ALONE, *OPEN)
            entries.append(Entry(server, loads, grpc_loads=LAYERS, engine_loads=LAYERS))
        else:
            entries.append(Entry(server, ours.VARIANTS[variant].loads or COMMON))
    return entries


def peer_entries(names: Iterable[str], report: Callable[[str], None]) -> list[Entry]:
    """Install the peers and return them. One that cannot be installed is reported and left out."""
    entries = []
    for name in names:
        try:
            report(f"installing {name} if necessary")
            server = PEERS[name]()
        except InstallError as error:
            report(f"{name} cannot be installed: {error}")
        else:
            entries.append(Entry(server, (*COMMON, *OPEN)))
    return entries


def _vllm_bf16() -> Server:
    vllm.install()
    return vllm.server("vllm-bf16", "vLLM, bf16", checkpoint("bf16"), "bfloat16")


def _vllm_int8() -> Server:
    vllm.install()
    precision = "int8 weights and activations (W8A8)"
    return vllm.server("vllm-int8", "vLLM, int8", checkpoint("int8"), precision)


def _llama_cpp() -> Server:
    llama_cpp.install()
    return llama_cpp.server()


def _transformers() -> Server:
    transformers_serve.install()
    return transformers_serve.server(checkpoint("bf16"))


# The peers by name. Each function installs its peer unless it is installed, and raises InstallError
# if that fails.
PEERS: dict[str, Callable[[], Server]] = {
    "vllm-bf16": _vllm_bf16,
    "vllm-int8": _vllm_int8,
    "llama.cpp": _llama_cpp,
    "transformers": _transformers,
}


def checkpoint(precision: str) -> Path:
    """Return the directory of the model in bf16, as in our service, or in int8, made from it."""
    command = [sys.executable, "-m", "bench.checkpoints", str(root() / "smollm2-int8")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        raise InstallError(f"the checkpoint cannot be made: {done.stderr.strip()[-200:]}")
    return Path(json.loads(done.stdout.splitlines()[-1])[precision])
