"""Loads a checkpoint into the native decoder."""

import ctypes
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from service.engine.decoder.architecture import Architecture
from service.engine.decoder.attention import NativeDecoderAttention
from service.engine.decoder.attention_backends import AttentionSetup, make_attention
from service.engine.decoder.decoder import Decoder, read_embedding, read_head, read_layer
from service.engine.decoder.linear import FloatLinear, MakeLinear
from service.engine.decoder.quantization_loss import (
    BLOCK_SIZE,
    ReferenceRun,
    loss_of,
    num_blocks,
)
from service.engine.decoder.quantized import QuantizedLinear
from service.engine.decoder.rope import make_ropes
from service.engine.decoder.weights import Weights
from service.engine.kv_store import KVShape
from service.engine.model_runner import LoadedModel, QuantizationLoss
from service.engine.native.compiler import kernels_level
from service.engine.quantized_checkpoint import StoredQuantization


def load_decoder(
    path: Path,
    config: Any,
    architecture: Architecture,
    stored: StoredQuantization | None,
    dtype: torch.dtype,
    kv_cache_dtype: torch.dtype,
    quantization: Literal["none", "int8", "int4"],
    device: torch.device,
    library: ctypes.CDLL | None,
    check_token_ids: tuple[int, ...] = (),
    *,
    keeps_groups: bool = False,
) -> LoadedModel:
    """Load the checkpoint in the directory `path` into the native decoder.

    Args:
        config: The model's config.
        architecture: The architecture that the config describes.
        stored: How the checkpoint's weights are quantized; None if they are not.
        dtype: Type of every weight that is not quantized.
        kv_cache_dtype: Type of the cached keys and values.
        quantization: Quantization of the loaded weights. The head is in int8 with int4, too.
        library: The native kernels; None to use torch's operators.
        check_token_ids: The token ids of a text. If there are at least two, the loss of the
            quantized model on this text is measured.
        keeps_groups: If True, weights that the checkpoint stores in groups of integers are used as
            they are, and `quantization` applies to all other weights.

    Raises:
        ModelLoadError: A tensor is missing or has the wrong shape, a file is damaged, or the
            weights are stored in a way that is not supported.
    """
    a = architecture
    is_quantized = quantization != "none"
    hidden_dtype = torch.float32 if is_quantized else dtype
    make_linear: MakeLinear = FloatLinear
    make_head: MakeLinear = FloatLinear
    if is_quantized:
        make_linear = partial(QuantizedLinear, library, bits=4 if quantization == "int4" else 8)
        make_head = partial(QuantizedLinear, library)
    with ExitStack() as files:
        weights = files.enter_context(
            Weights(path, hidden_dtype, device, stored, keeps_groups=keeps_groups)
        )
        reference = None
        if is_quantized and len(check_token_ids) > 1:
            exact = files.enter_context(Weights(path, dtype, device, stored))
            reference = ReferenceRun(check_token_ids, exact, config, a, dtype, device)
        layers = []
        for index in range(len(a.layers)):
            layers.append(read_layer(index, weights, a, make_linear, hidden_dtype))
            if reference is not None:
                reference.pass_layer(index)
        reference_loss = None if reference is None else reference.loss()
        embedding = read_embedding(weights, a, dtype)
        head = read_head(weights, a, make_head, hidden_dtype)
        weights.check_unread()
    shapes = [KVShape(a.num_kv_heads, a.head_dim, a.head_dim, kv_cache_dtype)] * len(layers)

    def finish(num_blocks: int, block_size: int, max_model_len: int) -> Decoder:
        ropes = make_ropes(config, a, max_model_len, device)
        layer_attention = [layer.attention for layer in layers]
        attention = make_attention(
            AttentionSetup(
                a, layer_attention, num_blocks, block_size, kv_cache_dtype, device, library
            )
        )
        # Sums of integers do not depend on their order, and the native attention has a fixed order.
        is_batch_invariant = is_quantized and isinstance(attention, NativeDecoderAttention)
        return Decoder(
            a,
            embedding,
            layers,
            head,
            attention,
            ropes,
            hidden_dtype,
            is_batch_invariant=is_batch_invariant,
        )

    description = {
        "decoder": "native",
        "dtype": str(dtype).removeprefix("torch."),
        "quantization": stored.method if stored is not None and keeps_groups else quantization,
        "kv_cache_dtype": str(kv_cache_dtype).removeprefix("torch."),
        "kernels": "torch" if library is None else kernels_level(library),
    }
    if stored is not None:
        description["checkpoint_quantization"] = stored.method
    loss = None
    if reference_loss is not None:
        # This decoder has a cache of its own, because the service's cache is not allocated yet.
        decoder = finish(num_blocks(check_token_ids), BLOCK_SIZE, len(check_token_ids))
        loss = QuantizationLoss(loss_of(decoder, check_token_ids), reference_loss)
    return LoadedModel(shapes, finish, description, loss)
