"""The attention implementations of the native decoder, and the choice among them.

To add one, write a module with an `Attention` and a function that makes it, and add a line to
`BACKENDS`.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import structlog
import torch

from service.engine.decoder.architecture import Architecture
from service.engine.decoder.attention import (
    Attention,
    LayerAttention,
    NativeDecoderAttention,
    TorchAttention,
)
from service.engine.kv_store import KVShape
from service.engine.native.attention import NativeKVStore
from service.engine.paged_attention import make_paged_attention
from service.errors import ModelLoadError

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class AttentionSetup:
    """The model, cache size and device that an attention implementation is made for.

    Attributes:
        layers: Every layer that `Attention.attend` will be called for.
        num_blocks: Number of blocks in the KV cache.
        block_size: Tokens per block.
        dtype: Type of the cached keys and values.
        library: The native kernels; None if they are not available.
    """

    architecture: Architecture
    layers: list[LayerAttention]
    num_blocks: int
    block_size: int
    dtype: torch.dtype
    device: torch.device
    library: ctypes.CDLL | None


def _native(setup: AttentionSetup) -> Attention | None:
    if setup.library is None:
        return None
    a = setup.architecture
    store = NativeKVStore(
        len(setup.layers),
        a.num_kv_heads,
        a.head_dim,
        setup.num_blocks,
        setup.block_size,
        setup.dtype,
    )
    return NativeDecoderAttention(setup.library, a, setup.layers, store)


def _torch(setup: AttentionSetup) -> Attention:
    if setup.dtype is torch.int8:
        raise ValueError("the KV cache of torch's attention has floating-point types only")
    a = setup.architecture
    paged = make_paged_attention(
        [KVShape(a.num_kv_heads, a.head_dim, a.head_dim, setup.dtype)] * len(setup.layers),
        a.num_heads,
        setup.num_blocks,
        setup.block_size,
        setup.device,
        has_softcap=a.attention_softcap is not None,
    )
    return TorchAttention(a, paged, setup.dtype)


# The backends in order of preference. A backend returns None if it does not support the device, and
# raises ValueError if it does not support the sizes of the model or the type of the cache. The last
# one supports every model with a cache of a floating-point type.
BACKENDS: dict[str, Callable[[AttentionSetup], Attention | None]] = {
    "native": _native,
    "torch": _torch,
}


def make_attention(setup: AttentionSetup) -> Attention:
    """Make the first implementation in `BACKENDS` that supports the model on the device.

    Raises:
        ModelLoadError: No implementation supports the type of the cache for this model.
    """
    reason = "the native kernels are not available"
    for name, make in BACKENDS.items():
        try:
            attention = make(setup)
        except ValueError as error:
            log.info("attention_backend_unavailable", backend=name, reason=str(error))
            reason = reason if name == "torch" else str(error)
            continue
        if attention is not None:
            return attention
    type_name = str(setup.dtype).removeprefix("torch.")
    raise ModelLoadError(f"kv_cache_dtype={type_name} is not supported for this model: {reason}.")
