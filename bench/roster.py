"""The servers of a run and their loads."""

from collections.abc import Callable, Iterable

from bench import ours
from bench.contest import Entry
from bench.model import Model
from bench.peers import llama_cpp, transformers_serve, vllm
from bench.peers.environment import InstallError
from bench.server import Server

BASELINE = "chatrpc"
# The loads that every server gets, unless others are chosen.
COMMON = ("c1", "c8", "c32", "long", "turns", "stall")
# The loads of our default variant.
OURS_ALONE = ("edit",)
OPEN = ("open-2", "open-6")
LAYERS = ("c32",)


def our_entries(
    variants: Iterable[str],
    model: Model,
    loads: Iterable[str],
    report: Callable[[str], None],
    *,
    has_layers: bool = False,
) -> list[Entry]:
    """Return our variants with the loads that they have among `loads`.

    With `has_layers`, the default one is also measured over gRPC and as a bare engine. One whose
    files cannot be made is reported and left out.
    """
    entries = []
    for variant in variants:
        try:
            server = ours.server(variant, model)
        except InstallError as error:
            report(f"{variant} cannot be measured: {error}")
            continue
        only = ours.VARIANTS[variant].loads
        wanted = [load for load in loads if not only or load in only]
        layers = [load for load in LAYERS if load in wanted]
        if variant != BASELINE or not has_layers:
            layers = []
        entries.append(Entry(server, wanted, grpc_loads=layers, engine_loads=layers))
    return entries


def peer_entries(
    names: Iterable[str], model: Model, loads: Iterable[str], report: Callable[[str], None]
) -> list[Entry]:
    """Install the peers and return them, with those of the `loads` that are not only for ours.

    One that cannot be installed, or whose files cannot be made, is reported and left out.
    """
    wanted = [load for load in loads if load not in OURS_ALONE]
    entries = []
    for name in names:
        try:
            report(f"installing {name} if necessary")
            server = PEERS[name](model)
        except InstallError as error:
            report(f"{name} cannot be installed: {error}")
        else:
            entries.append(Entry(server, wanted))
    return entries


def _vllm_bf16(model: Model) -> Server:
    vllm.install()
    source = model.source()
    return vllm.server("vllm-bf16", "vLLM, bf16", source, model.name, "bfloat16", "bf16")


def _vllm_int8(model: Model) -> Server:
    vllm.install()
    precision = "int8 weights and activations (W8A8)"
    checkpoint = model.checkpoint("int8")
    return vllm.server("vllm-int8", "vLLM, int8", checkpoint, model.name, precision, "int8")


def _vllm_int4(model: Model) -> Server:
    vllm.install()
    precision = (
        "int4 weights in groups of 32 (a W4A16 checkpoint). Activations are in bfloat16; vLLM "
        "quantizes them to int8 only where there is AMX"
    )
    checkpoint = model.checkpoint("int4")
    return vllm.server("vllm-int4", "vLLM, int4", checkpoint, model.name, precision, "bf16")


def _transformers(model: Model) -> Server:
    transformers_serve.install()
    return transformers_serve.server(model.source())


def _llama_cpp(kind: str, *, is_avx2: bool = False) -> Callable[[Model], Server]:
    def server(model: Model) -> Server:
        llama_cpp.install(is_avx2=is_avx2)
        return llama_cpp.server(kind, model.gguf(kind), model.name, is_avx2=is_avx2)

    return server


# The peers by name. Each function installs its peer unless it is installed, and raises InstallError
# if that fails.
PEERS: dict[str, Callable[[Model], Server]] = {
    "vllm-bf16": _vllm_bf16,
    "vllm-int8": _vllm_int8,
    "vllm-int4": _vllm_int4,
    "llama.cpp-q4_0": _llama_cpp("Q4_0"),
    "llama.cpp-q4_k_m": _llama_cpp("Q4_K_M"),
    "llama.cpp-q8_0": _llama_cpp("Q8_0"),
    "llama.cpp-avx2-q4_0": _llama_cpp("Q4_0", is_avx2=True),
    "transformers": _transformers,
}
