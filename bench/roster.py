"""Who takes part in a run, and in which loads."""

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
# Every server gets these.
COMMON = ("c1", "c8", "c32", "long", "turns", "stall")
OPEN = ("open-2", "open-6")
LAYERS = ("c32",)

PEERS = ("vllm-bf16", "vllm-int8", "llama.cpp", "transformers")


def our_entries(variants: Iterable[str], *, has_open_loop: bool) -> list[Entry]:
    """The default variant gets every load, and its layers theirs; the others those they are for."""
    entries = []
    for variant in variants:
        server = ours.server(variant)
        if variant == BASELINE:
            loads = (*COMMON, "edit", *(OPEN if has_open_loop else ()))
            entries.append(Entry(server, loads, grpc_loads=LAYERS, engine_loads=LAYERS))
        else:
            entries.append(Entry(server, ours.VARIANTS[variant].loads or COMMON))
    return entries


def peer_entries(
    names: Iterable[str], say: Callable[[str], None], *, has_open_loop: bool
) -> list[Entry]:
    """Those that can be installed; what cannot is said, and the run goes on without it."""
    entries = []
    for name in names:
        try:
            say(f"installing {name} unless it is there")
            server = _peer(name)
        except InstallError as error:
            say(f"{name} cannot be installed: {error}")
        else:
            entries.append(Entry(server, (*COMMON, *(OPEN if has_open_loop else ()))))
    return entries


def _peer(name: str) -> Server:
    match name:
        case "vllm-bf16":
            vllm.install()
            return vllm.server(name, "vLLM, bf16", _checkpoint("bf16"), "bfloat16")
        case "vllm-int8":
            vllm.install()
            settings = "int8 weights and activations (W8A8)"
            return vllm.server(name, "vLLM, int8", _checkpoint("int8"), settings)
        case "llama.cpp":
            llama_cpp.install()
            return llama_cpp.server()
        case _:
            transformers_serve.install()
            return transformers_serve.server(_checkpoint("bf16"))


def _checkpoint(precision: str) -> Path:
    command = [sys.executable, "-m", "bench.checkpoints", str(root() / "smollm2-int8")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        raise InstallError(f"the checkpoint cannot be made: {done.stderr.strip()[-200:]}")
    return Path(json.loads(done.stdout.splitlines()[-1])[precision])
