"""From a checkpoint to the lean decoder."""

from pathlib import Path
from typing import Any, Literal

import torch

from service.engine.decoder.architecture import Architecture
from service.engine.decoder.attention import TorchAttention
from service.engine.decoder.decoder import Decoder, read_head, read_layers
from service.engine.decoder.linear import FloatLinear
from service.engine.decoder.rope import make_ropes
from service.engine.decoder.weights import Weights
from service.engine.kv_store import KVShape, KVStore
from service.engine.loaded_model import LoadedModel


def load_decoder(
    path: Path,
    config: Any,
    architecture: Architecture,
    dtype: torch.dtype,
    quantization: Literal["none", "int8"],
    device: torch.device,
) -> LoadedModel:
    """The decoder in `path`, whose transformers config describes `architecture`.

    Args:
        dtype: of the cache and of every weight that is not quantized.

    Raises:
        ModelLoadError: a tensor is missing or of the wrong shape, a file is damaged.
    """
    a = architecture
    with Weights(path, dtype, device) as weights:
        layers = read_layers(weights, a, FloatLinear, dtype)
        embedding, head = read_head(weights, a, FloatLinear, dtype)
    shapes = [KVShape(a.num_kv_heads, a.head_dim, a.head_dim, dtype)] * len(a.layers)

    def finish(num_blocks: int, block_size: int, max_model_len: int) -> Decoder:
        store = KVStore(shapes, num_blocks, block_size, device)
        attention = TorchAttention(a, store, dtype)
        ropes = make_ropes(config, a, max_model_len, device)
        return Decoder(a, embedding, layers, head, attention, ropes, dtype)

    description = {
        "decoder": "lean",
        "dtype": str(dtype).removeprefix("torch."),
        "quantization": quantization,
    }
    return LoadedModel(shapes, finish, description)
