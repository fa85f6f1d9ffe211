"""Our own service and gateway, as measured servers."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

from bench import weights
from bench.model import Model
from bench.server import Ports, Server

_LOG = ("--log-level", "warning")
_NO_DRAFTS = ("--speculation", "none")


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to run the service.

    Attributes:
        loads: Names of its loads. If there are none, it gets the common ones.
        gguf: The type of the GGUF file that it loads instead of the checkpoint in bfloat16.
        bits: Bits of a weight in the layers and in the head, with the scales, if the checkpoint in
            bfloat16 is loaded.
        arithmetic: The type of its matrix products: `int8` or `bf16`.
    """

    title: str
    options: tuple[str, ...] = ()
    loads: tuple[str, ...] = ()
    gguf: str | None = None
    bits: tuple[float, float] = (8, 8)
    arithmetic: str = "int8"


VARIANTS = {
    "chatrpc": Variant("chatrpc, int8"),
    "chatrpc-int4": Variant("chatrpc, int4", ("--quantization", "int4"), bits=(4.625, 8)),
    "chatrpc-q4_0": Variant("chatrpc, GGUF Q4_0", gguf="Q4_0"),
    "chatrpc-q4_k_m": Variant("chatrpc, GGUF Q4_K_M", gguf="Q4_K_M"),
    "chatrpc-avx2": Variant("chatrpc, int8, AVX2", ("--cpu-level", "avx2")),
    "chatrpc-int4-avx2": Variant(
        "chatrpc, int4, AVX2",
        ("--quantization", "int4", "--cpu-level", "avx2"),
        bits=(4.625, 8),
    ),
    "chatrpc-exact": Variant(
        "chatrpc, unquantised", ("--quantization", "none"), bits=(16, 16), arithmetic="bf16"
    ),
    "chatrpc-plain": Variant("chatrpc, int8, no drafts", _NO_DRAFTS, ("c1", "c8", "c32", "edit")),
}


def server(variant: str, model: Model) -> Server:
    """Return a variant of our service, on `model`.

    With random weights it has no drafts: such a model repeats words, and drafts would be accepted
    more often than in real text.

    Raises:
        InstallError: The files of the model cannot be made.
    """
    wanted = VARIANTS[variant]
    argument = str(model.gguf(wanted.gguf)) if wanted.gguf else model.argument()
    chosen = wanted.options
    if model.is_random and _NO_DRAFTS[0] not in chosen:
        chosen = (*chosen, *_NO_DRAFTS)
    options = ("--model", argument, "--served-model-name", model.name, *chosen)

    def commands(ports: Ports) -> Sequence[Sequence[str]]:
        return service_command(ports, *options), gateway_command(ports)

    return Server(
        name=variant,
        title=wanted.title,
        version=version("chatrpc"),
        settings=_settings(wanted, chosen),
        model=model.name,
        commands=commands,
        env=os.environ,
        has_grpc=True,
        weight_bytes=_weight_bytes(wanted, model),
        arithmetic=wanted.arithmetic,
        engine_options=options,
    )


def service_command(ports: Ports, *options: str, python: str = sys.executable) -> Sequence[str]:
    """Return the command of the service, in the environment of `python`."""
    return (python, "-m", "service", *options, "--port", str(ports.grpc), *_LOG)


def gateway_command(ports: Ports) -> Sequence[str]:
    """Return the command of the gateway in front of the service."""
    listen = ("--upstream", f"127.0.0.1:{ports.grpc}", "--port", str(ports.http))
    return (sys.executable, "-m", "gateway_http", *listen, *_LOG)


def _settings(variant: Variant, options: Sequence[str]) -> str:
    model = f" on a {variant.gguf} file" if variant.gguf else ""
    if not options:
        return f"service and gateway as they come{model}"
    return f"service and gateway{model}, `{' '.join(options)}`, otherwise as they come"


def _weight_bytes(variant: Variant, model: Model) -> int:
    if variant.gguf:
        return weights.gguf_bytes(model.gguf(variant.gguf))
    of_layers, of_head = variant.bits
    facts = model.facts
    return int(facts.num_layer_weights * of_layers + facts.num_head_weights * of_head) // 8
