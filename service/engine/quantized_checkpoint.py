"""Reads from a checkpoint's JSON files how its weights are quantized.

Each method has one reader here. A method without a reader is rejected: weights that are cast
without their scales would give meaningless responses and no error.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from service.engine.gguf_blocks import GROUPED
from service.engine.packed_weights import PackedWeights
from service.errors import ModelLoadError
from service.gguf.index import IndexedTensor, read_index
from service.json_file import read_json_object

# Files that quantizers write next to config.json, with the name of each quantizer's method. The
# first ones are read if config.json describes no quantization.
_METHOD_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
_OTHER_FILES = {
    "quant_model_description.json": "msmodelslim",
    "smash_config.json": "pruna",
}
_MODELOPT_FILE = "hf_quant_config.json"
# Fields of a multimodal config that contain the config of the language model.
_PARTS = ("text_config", "llm_config", "language_config")


@dataclass(frozen=True, slots=True)
class QuantizedWeights:
    """The storage of a quantized weight [N, K] in the tensors of a checkpoint.

    The weight is `(stored - zero point) * scale`. The scale is one number, one for each row, or one
    for each block of `block` rows and columns.
    """

    method: str  # the quantization method's name, for messages and the log
    dtype: Literal["float8", "int8"]
    scale_names: tuple[str, ...]  # last part of a scale's name; the first that exists is used
    block: tuple[int | None, int] | None = None  # rows and columns; rows None means 1
    divisor: float = 1.0  # the stored scale is divided by it
    has_quantized_cache: bool = False  # the checkpoint has scales for a quantized KV cache too

    @property
    def has_groups(self) -> bool:
        """True if the weights are integers in groups."""
        return False


@dataclass(frozen=True, slots=True)
class GgufTensors:
    """The tensors of a checkpoint whose weights are in a GGUF file, by name."""

    tensors: Mapping[str, IndexedTensor]

    @property
    def method(self) -> str:
        """The type in which most bytes are stored, such as `Q4_K`."""
        sizes: Counter[str] = Counter()
        for tensor in self.tensors.values():
            sizes[tensor.type] += tensor.num_bytes
        return sizes.most_common(1)[0][0]

    @property
    def has_groups(self) -> bool:
        """True if most weights are integers in groups."""
        return self.method in GROUPED


StoredQuantization = QuantizedWeights | PackedWeights | GgufTensors
_Safetensors = QuantizedWeights | PackedWeights


def read_quantized_weights(path: Path) -> StoredQuantization | None:
    """Return how the weights of the checkpoint in the directory `path` are stored.

    None if they are floating-point numbers in safetensors.

    Raises:
        ModelLoadError: The method is not supported.
    """
    tensors = read_index(path)
    if tensors is not None:
        return GgufTensors(tensors)
    for file, method in _OTHER_FILES.items():
        if (path / file).is_file():
            raise _not_served(path, f"{method} ({file})")
    found = [_read(path, fields) for fields in _descriptions(path)]
    schemes = [scheme for scheme in found if scheme is not None]
    if any(scheme.method != schemes[0].method for scheme in schemes):
        methods = " and ".join(scheme.method for scheme in schemes)
        raise ModelLoadError(
            f"The files of the model at {path} name several quantizations: {methods}."
        )
    return schemes[0] if schemes else None


def _descriptions(path: Path) -> list[dict[str, Any]]:
    """Return every description of a quantization in the checkpoint's files."""
    config = read_json_object(path / "config.json")
    owners = [config, *(config[part] for part in _PARTS if isinstance(config.get(part), dict))]
    names = ("quantization_config", "compression_config", "quantization")
    found = [owner[name] for owner in owners for name in names if owner.get(name)]
    modelopt = read_json_object(path / _MODELOPT_FILE)
    if modelopt:
        found.append({"quant_method": "modelopt"} | modelopt)
    for file, method in _METHOD_FILES.items():
        if not found and (path / file).is_file():
            found.append({"quant_method": method} | read_json_object(path / file))
    for fields in found:
        if not isinstance(fields, dict):
            raise _not_served(path, repr(fields))
    return found


def _read(path: Path, fields: dict[str, Any]) -> _Safetensors | None:
    method = _method(fields)
    reader = _READERS.get(method)
    if reader is None:
        raise _not_served(path, method)
    try:
        return reader(fields)
    except _NotServed as error:
        raise _not_served(path, str(error)) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _not_served(path, f"{method}, with a description that cannot be read") from error


def _method(fields: dict[str, Any]) -> str:
    method = fields.get("quant_method")
    if method is None and (fields.get("load_in_8bit") or fields.get("load_in_4bit")):
        method = "bitsandbytes"
    producer = fields.get("producer")
    if method is None and isinstance(producer, dict):
        method = producer.get("name")
    if method is None and "config_groups" in fields:
        method = "compressed-tensors"
    if method is None and {"bits", "group_size"} <= fields.keys():
        method = "mlx"
    return str(method or "an unnamed method")


class _NotServed(Exception):
    """A variant of a method that is not supported. Its message names the variant."""


def _fp8(fields: dict[str, Any]) -> QuantizedWeights:
    """Read the FP8 formats of DeepSeek, Qwen and Mistral, and of vLLM and AutoFP8 (no blocks)."""
    size = fields.get("weight_block_size")
    return QuantizedWeights(
        method="fp8",
        dtype="float8",
        scale_names=("weight_scale_inv", "weight_scale"),
        block=_block(size) if size else None,
        has_quantized_cache=bool(fields.get("kv_cache_scheme")),
    )


def _fbgemm_fp8(_: dict[str, Any]) -> QuantizedWeights:
    return QuantizedWeights("fbgemm_fp8", "float8", ("weight_scale",))


def _bitsandbytes(fields: dict[str, Any]) -> QuantizedWeights:
    """Read LLM.int8 (arXiv 2208.07339). `SCB` is the largest magnitude of each row."""
    if fields.get("load_in_4bit") or not fields.get("load_in_8bit"):
        raise _NotServed("bitsandbytes in 4 bits")
    return QuantizedWeights("bitsandbytes int8", "int8", ("SCB",), divisor=127.0)


def _awq(fields: dict[str, Any]) -> PackedWeights:
    bits = fields.get("bits", fields.get("w_bit"))
    version = str(fields.get("version", "gemm")).lower()
    if bits != 4 or version != "gemm" or fields.get("zero_point") is False:
        raise _NotServed(f"awq with {bits} bits in the version {version}")
    return PackedWeights("awq", "awq", 4)


def _gptq(fields: dict[str, Any]) -> PackedWeights:
    """Read GPTQ's formats. The first one stores zero points less 1."""
    bits, stored_as = fields.get("bits"), fields.get("checkpoint_format") or "gptq"
    if fields.get("is_marlin_format"):
        stored_as = "marlin"
    if bits not in (4, 8) or stored_as not in ("gptq", "gptq_v2"):
        raise _NotServed(f"gptq with {bits} bits in the format {stored_as}")
    if fields.get("dynamic"):
        raise _NotServed("gptq with settings of single layers (dynamic)")
    return PackedWeights(f"gptq {bits} bits", "gptq", bits, int(stored_as == "gptq"))


def _modelopt(fields: dict[str, Any]) -> QuantizedWeights | None:
    inner = fields.get("quantization") or fields
    algorithm = inner.get("quant_algo")
    has_quantized_cache = bool(inner.get("kv_cache_quant_algo") or inner.get("kv_cache_scheme"))
    if algorithm is None and not inner.get("config_groups"):
        return None  # the weights are not quantized
    blocks = {"FP8": None, "FP8_PER_CHANNEL_PER_TOKEN": None, "FP8_PB_WO": (128, 128)}
    if algorithm not in blocks:
        raise _NotServed(f"modelopt {algorithm}")
    return QuantizedWeights(
        method=f"modelopt {algorithm}",
        dtype="float8",
        scale_names=("weight_scale",),
        block=blocks[algorithm],
        has_quantized_cache=has_quantized_cache,
    )


def _compressed_tensors(fields: dict[str, Any]) -> _Safetensors | None:
    """Read compressed-tensors. All groups must store their weights in the same way."""
    # Older files contain the description one level deeper.
    fields = fields | (fields.get("quantization_config") or {})
    sparsity = fields.get("sparsity_config") or {}
    if sparsity.get("format", "dense") != "dense":
        raise _NotServed(f"compressed-tensors {sparsity['format']}")
    if (fields.get("transform_config") or {}).get("config_groups"):
        raise _NotServed("compressed-tensors with transforms")
    groups = list((fields.get("config_groups") or {}).values())
    stored_as = fields.get("format", "dense")
    kinds = {kind for group in groups if (kind := _compressed_group(group, stored_as)) is not None}
    if len(kinds) > 1:
        raise _NotServed("compressed-tensors with several kinds of weights")
    if not kinds:
        return None  # only the cache or activations are quantized
    kind = kinds.pop()
    if isinstance(kind, PackedWeights):
        return replace(kind, has_quantized_cache=bool(fields.get("kv_cache_scheme")))
    dtype, block = kind
    return QuantizedWeights(
        method=f"compressed-tensors {dtype}",
        dtype=dtype,
        scale_names=("weight_scale",),
        block=block,
        has_quantized_cache=bool(fields.get("kv_cache_scheme")),
    )


_Kind = tuple[Literal["float8", "int8"], tuple[int | None, int] | None] | PackedWeights


def _compressed_group(group: Mapping[str, Any], default_format: str) -> _Kind | None:
    weights = group.get("weights")
    if weights is None:
        return None
    stored_as = group.get("format") or default_format
    kind, num_bits = weights.get("type", "int"), weights.get("num_bits", 8)
    if stored_as == "pack-quantized" and kind == "int" and num_bits in (4, 8):
        return PackedWeights(f"compressed-tensors W{num_bits}A16", "compressed-tensors", num_bits)
    formats = {"float": "float-quantized", "int": "int-quantized"}
    if stored_as not in {formats.get(kind), "naive-quantized"}:
        raise _NotServed(f"compressed-tensors {stored_as}")
    if num_bits != 8:
        raise _NotServed(f"compressed-tensors {stored_as} with {num_bits} bits")
    if weights.get("actorder"):
        raise _NotServed(f"compressed-tensors {stored_as} with reordered columns (actorder)")
    strategy = weights.get("strategy") or ("group" if weights.get("group_size") else "tensor")
    block: tuple[int | None, int] | None = None
    match strategy:
        case "tensor" | "channel":
            pass
        case "block":
            block = _block(weights["block_structure"])
        case "group":
            block = (None, int(weights["group_size"]))
        case _:
            raise _NotServed(f"compressed-tensors {stored_as} with the strategy {strategy}")
    return ("float8" if kind == "float" else "int8"), block


def _block(size: Any) -> tuple[int, int]:
    """Parse the rows and columns of a block, from a list or a text such as "128x128"."""
    num_rows, num_columns = size.split("x") if isinstance(size, str) else size
    block = int(num_rows), int(num_columns)
    if min(block) < 1:
        raise ValueError(size)
    return block


_READERS: dict[str, Callable[[dict[str, Any]], _Safetensors | None]] = {
    "awq": _awq,
    "gptq": _gptq,
    "fp8": _fp8,
    "fbgemm_fp8": _fbgemm_fp8,
    "bitsandbytes": _bitsandbytes,
    "modelopt": _modelopt,
    "compressed-tensors": _compressed_tensors,
}


def _not_served(path: Path, method: str) -> ModelLoadError:
    return ModelLoadError(
        f"The model at {path} is quantized by {method}, which is not supported. Use the checkpoint "
        "without quantization, or one in FP8, 8-bit integers, AWQ or GPTQ."
    )
