"""Causal attention over a paged cache, in one native call per layer; the binding of attention.cpp.

The bits of a row's result, and of the keys and values that it writes, do not depend on the rest of
the step: other sequences, other rows of the same sequence, the block table, the number of threads.
"""

import ctypes
from array import array
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# The types of a cache, with the kernel's numbers for them.
_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}


class _Layer(ctypes.Structure):
    _fields_ = (
        ("cache", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("q_norm", ctypes.c_void_p),
        ("k_norm", ctypes.c_void_p),
        ("num_heads", ctypes.c_int64),
        ("num_kv_heads", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
        ("block_size", ctypes.c_int64),
        ("window", ctypes.c_int64),
        ("norm_eps", ctypes.c_float),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("type", ctypes.c_int32),
    )


class _Plan(ctypes.Structure):
    _fields_ = (
        ("row_starts", ctypes.c_void_p),
        ("context_lens", ctypes.c_void_p),
        ("table_starts", ctypes.c_void_p),
        ("blocks", ctypes.c_void_p),
        ("num_sequences", ctypes.c_int64),
        ("num_threads", ctypes.c_int64),
    )


class _Rotary(ctypes.Structure):
    _fields_ = (("cos", ctypes.c_void_p), ("sin", ctypes.c_void_p), ("dim", ctypes.c_int64))


class NativeKVStore:
    """Keys and values of every layer, in blocks, in the kernel's layout.

    A block contains, for each key-value head, its keys and then its values:

        keys [block_size / 16, head_dim / pack, 16 tokens, pack]
        values [block_size / step, head_dim / 16, step / pack tokens, 16, pack tokens]

    float32 has pack 1 and step 16. bfloat16 has pack 2, because its products take pairs, and step
    32. If the block size is not a multiple of 32, bfloat16 has step 16, which is slower. int8 has
    pack 4 and step 16. Its keys are rotated by a Walsh-Hadamard transform of 64 dimensions (16 if
    64 do not divide the head size) and stored plus 128, as unsigned bytes. Each key and each value
    of a token and head has a scale of float32 in another tensor.

    The memory is zero, and the operating system commits it when it is first written.
    """

    def __init__(
        self,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
    ) -> None:
        """Allocate the cache.

        Raises:
            ValueError: The kernel does not support the block size, the head size or the type.
        """
        if block_size < 16 or block_size % 16:
            raise ValueError(f"block_size {block_size} is not a multiple of 16")
        if head_dim not in range(16, 257, 16):
            raise ValueError(f"head_dim {head_dim} is not a multiple of 16 up to 256")
        if dtype not in _TYPES:
            raise ValueError(f"dtype {dtype} is none of float32, bfloat16 and int8")
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.dtype = dtype
        self._pack = 4 // dtype.itemsize
        self._step = 32 if self._pack == 2 and block_size % 32 == 0 else 16
        size = num_blocks * num_kv_heads * 2 * block_size * head_dim
        self._layers = [_zeros(size, dtype) for _ in range(num_layers)]
        num_scales = size // head_dim if dtype is torch.int8 else 0
        self._scales = [_zeros(num_scales, torch.float32) for _ in range(num_layers)]

    def address(self, layer: int) -> int:
        """Return the address of a layer's memory."""
        return self._layers[layer].data_ptr()

    def scales_address(self, layer: int) -> int | None:
        """Return the address of a layer's scales; None if the cache has none."""
        return self._scales[layer].data_ptr() if self.dtype is torch.int8 else None

    def block_tensors(self) -> list[Tensor]:
        """Return views of the whole cache, each with the blocks as its first dimension."""
        tensors = [*self._layers, *(self._scales if self.dtype is torch.int8 else ())]
        return [tensor.view(self.num_blocks, -1) for tensor in tensors]

    def keys(self, layer: int) -> Tensor:
        """Return a view [num_blocks, num_kv_heads, block_size / 16, 16, head_dim / pack, pack]."""
        shape = (self.block_size // 16, self.head_dim // self._pack, 16, self._pack)
        return self._parts(layer, 0, shape).transpose(3, 4)

    def values(self, layer: int) -> Tensor:
        """Return a view [num_blocks, num_kv_heads, block_size / step, step / pack, pack,
        head_dim / 16, 16]."""
        shape = (
            self.block_size // self._step,
            self.head_dim // 16,
            self._step // self._pack,
            16,
            self._pack,
        )
        return self._parts(layer, 1, shape).permute(0, 1, 2, 4, 6, 3, 5)

    def token(self, layer: int, slot: int) -> tuple[Tensor, Tensor]:
        """Return the key and the value of a slot (block * block_size + offset), each
        [num_kv_heads, head_dim]. Those of int8 are float32, multiplied by their scales; the
        key is rotated."""
        block, offset = divmod(slot, self.block_size)
        key = self.keys(layer)[block, :, offset // 16, offset % 16]
        pair, odd = divmod(offset % self._step, self._pack)
        value = self.values(layer)[block, :, offset // self._step, pair, odd]
        key, value = key.flatten(1), value.flatten(1)
        if self.dtype is torch.int8:
            key_scale, value_scale = self.scales(layer)[block, :, :, offset, None].unbind(1)
            return (key ^ -128).float() * key_scale, value.float() * value_scale
        return key, value

    def scales(self, layer: int) -> Tensor:
        """Return a view of the scales of int8 [num_blocks, num_kv_heads, 2, block_size]: those of
        the keys and those of the values."""
        return self._scales[layer].view(self.num_blocks, self.num_kv_heads, 2, self.block_size)

    def _parts(self, layer: int, part: int, shape: tuple[int, ...]) -> Tensor:
        parts = self._layers[layer].view(self.num_blocks, self.num_kv_heads, 2, -1)
        return parts[:, :, part].view(self.num_blocks, self.num_kv_heads, *shape)


class AttentionPlan:
    """The rows of a step, the same for every layer: consecutive tokens of sequences, packed.

    Args:
        num_rows: Number of rows of each sequence.
        context_lens: Number of tokens of each sequence up to and including its last row.
        block_tables: Block ids of each sequence. Token p is in block `table[p // block_size]`.
        block_size: Tokens per block.
    """

    __slots__ = ("_arrays", "_plan", "address", "num_rows")

    def __init__(
        self,
        num_rows: Sequence[int],
        context_lens: Sequence[int],
        block_tables: Sequence[Sequence[int]],
        block_size: int,
    ) -> None:
        """Check and pack the arguments.

        Raises:
            ValueError: A sequence has no rows, or more rows than tokens, or too few blocks.
        """
        row_starts, table_starts, blocks = array("i", [0]), array("i"), array("i")
        total = 0
        for rows, context_len, table in zip(num_rows, context_lens, block_tables, strict=True):
            if not 1 <= rows <= context_len <= len(table) * block_size:
                raise ValueError(
                    f"{rows} rows of {context_len} tokens in {len(table)} blocks of {block_size}"
                )
            total += rows
            row_starts.append(total)
            table_starts.append(len(blocks))
            blocks.extend(table)
        arrays = (row_starts, array("i", context_lens), table_starts, blocks)
        self._arrays = arrays
        self._plan = _Plan(
            *(a.buffer_info()[0] for a in arrays), len(context_lens), torch.get_num_threads()
        )
        self.address = ctypes.addressof(self._plan)
        self.num_rows = total


class RotaryRows:
    """Cosines and sines of a step's rows: two tensors [T, rotary_dim / 2].

    The first `rotary_dim` dimensions of a head are rotated: dimension i together with dimension
    i + rotary_dim / 2.
    """

    __slots__ = ("_rotary", "_tables", "address", "dim")

    def __init__(self, cos: Tensor, sin: Tensor) -> None:
        self._tables = (cos.float().contiguous(), sin.float().contiguous())
        self.dim = 2 * cos.shape[-1]
        self._rotary = _Rotary(*(table.data_ptr() for table in self._tables), self.dim)
        self.address = ctypes.addressof(self._rotary)


class NativeAttention:
    """The attention of a layer, from the projected queries, keys and values to the weighted values.

    Args:
        library: The native kernels.
        scale: Factor of the scores.
        window: Number of positions that a token attends to, itself included; None for all.
        softcap: Scores become softcap * tanh(scores / softcap); None for no change.
        q_norm: Weight [head_dim] of an RMS norm of each query head, before rotation.
        k_norm: The same for key heads.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        store: NativeKVStore,
        layer: int,
        *,
        num_heads: int,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        q_norm: Tensor | None = None,
        k_norm: Tensor | None = None,
        norm_eps: float = 0.0,
    ) -> None:
        """Prepare the layer.

        Raises:
            ValueError: `num_heads` is not a multiple of the number of key-value heads.
        """
        if num_heads % store.num_kv_heads:
            raise ValueError(f"{num_heads} heads over {store.num_kv_heads} key-value heads")
        self._norms = [
            None if norm is None else norm.detach().float().contiguous()
            for norm in (q_norm, k_norm)
        ]
        self._store = store
        self._width_in = (num_heads + 2 * store.num_kv_heads) * store.head_dim
        self._width_out = num_heads * store.head_dim
        self._layer = _Layer(
            cache=store.address(layer),
            scales=store.scales_address(layer),
            q_norm=None if self._norms[0] is None else self._norms[0].data_ptr(),
            k_norm=None if self._norms[1] is None else self._norms[1].data_ptr(),
            num_heads=num_heads,
            num_kv_heads=store.num_kv_heads,
            head_dim=store.head_dim,
            block_size=store.block_size,
            window=window or 0,
            norm_eps=norm_eps,
            scale=scale,
            softcap=softcap or 0.0,
            type=_TYPES[store.dtype],
        )
        self._address = ctypes.addressof(self._layer)
        self._attend = library.chatrpc_attend
        self._attend.argtypes = [ctypes.c_void_p] * 5
        self._attend.restype = None

    def __call__(self, plan: AttentionPlan, qkv: Tensor, rotary: RotaryRows | None) -> Tensor:
        """Write the rows' keys and values to the cache, then attend.

        Args:
            qkv: float32 [T, (num_heads + 2 * num_kv_heads) * head_dim], contiguous: the queries,
                keys and values of each row.
            rotary: None if the layer has no rotary embedding.

        Returns:
            float32 [T, num_heads * head_dim]

        Raises:
            ValueError: `qkv` has another shape or type, or is not contiguous.
        """
        shape = (plan.num_rows, self._width_in)
        if qkv.shape != shape or qkv.dtype is not torch.float32 or not qkv.is_contiguous():
            raise ValueError(
                f"qkv is {qkv.dtype} {tuple(qkv.shape)}, not contiguous float32 {shape}"
            )
        out = qkv.new_empty(plan.num_rows, self._width_out)
        self._attend(
            self._address,
            plan.address,
            None if rotary is None else rotary.address,
            qkv.data_ptr(),
            out.data_ptr(),
        )
        return out


def _zeros(size: int, dtype: torch.dtype) -> Tensor:
    """Return `size` zeros, aligned to a page. Pages are committed when they are first written."""
    page = 4096
    storage = torch.from_numpy(np.zeros(size * dtype.itemsize + page, dtype=np.uint8))
    start = -storage.data_ptr() % page
    return storage[start : start + size * dtype.itemsize].view(dtype)
