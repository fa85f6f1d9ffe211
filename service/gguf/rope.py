"""Converts a GGUF file's metadata and tensors of rotary embeddings to `rope_parameters`."""

import math
from collections.abc import Sequence
from typing import Any

from service.errors import ModelLoadError
from service.gguf.file import GgufFile
from service.gguf.metadata import Metadata, shortened

FREQUENCY_FACTORS = "rope_freqs.weight"

# The original context length of Llama 3.1 to 3.3. Other lengths are tried after this one.
_LLAMA3_ORIGINAL_LENGTH = 8192
_LLAMA3_LOW, _LLAMA3_HIGH = 1.0, 4.0


def read_rope(metadata: Metadata, theta: float = 10000.0) -> dict[str, Any]:
    """Return `rope_parameters` for the base frequency and the scaling in the metadata.

    Args:
        theta: The base frequency if the file has none, as in llama.cpp.

    Raises:
        ModelLoadError: The kind of scaling is not supported, or the metadata are incomplete.
    """
    rope = {"rope_type": "default", "rope_theta": metadata.positive("rope.freq_base", theta)}
    metadata.value("rope.scaling.finetuned")  # information on the model's training
    metadata.value("rope.scaling.original_context_length")  # has an effect only in YaRN
    factor = metadata.positive("rope.scaling.factor", metadata.positive("rope.scale_linear", 1.0))
    kind = metadata.text("rope.scaling.type", "linear")
    if kind == "yarn":
        return rope | {"rope_type": "yarn", "factor": factor} | _yarn(metadata)
    metadata.require("rope.scaling.attn_factor", 1.0)
    if kind == "none" or (kind == "linear" and factor == 1):
        return rope
    if kind == "linear":
        return rope | {"rope_type": "linear", "factor": factor}
    raise ModelLoadError(
        f"The model scales rotary positions by {shortened(kind)} (rope.scaling.type), which is not "
        "served for this architecture."
    )


def _yarn(metadata: Metadata) -> dict[str, Any]:
    """Return YaRN's parameters except the factor, by their names in transformers."""
    metadata.require("rope.scaling.attn_factor", 1.0)
    metadata.require("rope.scaling.yarn_ext_factor", 1.0)
    optional = {
        "beta_fast": metadata.positive("rope.scaling.yarn_beta_fast", None),
        "beta_slow": metadata.positive("rope.scaling.yarn_beta_slow", None),
        "attention_factor": metadata.positive("rope.scaling.yarn_attn_factor", None),
    }
    length = metadata.integer("rope.scaling.original_context_length")
    return {"original_max_position_embeddings": length} | {
        name: value for name, value in optional.items() if value is not None
    }


def with_frequency_factors(
    rope: dict[str, Any], file: GgufFile, head_dim: int, max_length: int
) -> dict[str, Any]:
    """Return `rope` with the factors of the tensor `rope_freqs.weight`, if the file has it.

    Each factor divides the frequency of one pair of dimensions. The type becomes `llama3` if its
    parameters give the same factors; else `longrope` with these factors for any length.

    Raises:
        ModelLoadError: The tensor has another shape, or the file has another scaling too.
    """
    if FREQUENCY_FACTORS not in file.header.tensors:
        return rope
    factors = read_factors(file, FREQUENCY_FACTORS, head_dim // 2)
    if max(factors) == min(factors) == 1:
        return rope
    if rope["rope_type"] != "default":
        raise ModelLoadError(
            f"The file has both the tensor {FREQUENCY_FACTORS} and the rope.scaling.type "
            f"{rope['rope_type']!r}, which is not served."
        )
    return rope | (_as_llama3(rope["rope_theta"], factors) or _as_longrope(factors, max_length))


def read_factors(file: GgufFile, name: str, num_pairs: int) -> list[float]:
    """Read a tensor's factors, one for each pair of rotated dimensions.

    Raises:
        ModelLoadError: The tensor has another shape, or a factor that is not above 0.
    """
    tensor = file.header.tensors[name]
    factors = file.vector(tensor) if tensor.shape == (num_pairs,) else []
    if not factors or min(factors) <= 0:
        raise ModelLoadError(
            f"The tensor {name} has not {num_pairs} factors above 0, one for each pair of rotated "
            "dimensions."
        )
    return factors


def _as_llama3(theta: float, factors: Sequence[float]) -> dict[str, Any] | None:
    """Return parameters of Llama 3's scaling that give `factors`; None if there are none."""
    factor = float(max(factors))
    for length in (_LLAMA3_ORIGINAL_LENGTH, *(2**power for power in range(4, 21))):
        expected = _llama3_factors(theta, len(factors), factor, length)
        if all(math.isclose(a, b, rel_tol=1e-5) for a, b in zip(expected, factors, strict=True)):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": _LLAMA3_LOW,
                "high_freq_factor": _LLAMA3_HIGH,
                "original_max_position_embeddings": length,
            }
    return None


def _llama3_factors(theta: float, num_pairs: int, factor: float, length: int) -> list[float]:
    """Return the divisors of frequencies in Llama 3's scaling, from `factor` for long waves to 1
    for short ones."""
    factors = []
    for pair in range(num_pairs):
        # The number of waves of this pair within the original length.
        waves = length * theta ** (-pair / num_pairs) / (2 * math.pi)
        smooth = (waves - _LLAMA3_LOW) / (_LLAMA3_HIGH - _LLAMA3_LOW)
        smooth = min(max(smooth, 0.0), 1.0)
        factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors


def _as_longrope(factors: Sequence[float], max_length: int) -> dict[str, Any]:
    return {
        "rope_type": "longrope",
        "short_factor": list(factors),
        "long_factor": list(factors),
        "factor": 1.0,
        "attention_factor": 1.0,
        "original_max_position_embeddings": max_length,
    }
