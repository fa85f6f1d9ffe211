from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from service.engine.block_bytes import BlockBytes
from service.engine.kv_store import KVShape, KVStore
from service.engine.native.attention import NativeKVStore
from service.engine.varlen_attention import VarlenKVStore
from tests.support.device import TORCH_DEVICE

_NUM_BLOCKS = 3


def _gathered() -> list[Tensor]:
    shapes = [KVShape(2, 6, 4, torch.float32), KVShape(1, 8, 8, torch.bfloat16)]
    return KVStore(shapes, _NUM_BLOCKS, 4, TORCH_DEVICE).block_tensors()


def _varlen() -> list[Tensor]:
    shapes = [KVShape(2, 8, 8, torch.bfloat16)]
    return VarlenKVStore(shapes, _NUM_BLOCKS, 256, TORCH_DEVICE).block_tensors()


def _native() -> list[Tensor]:
    return NativeKVStore(2, 1, 16, _NUM_BLOCKS, 32, torch.bfloat16).block_tensors()


@pytest.mark.parametrize("make", [_gathered, _varlen, _native])
def test_block_read_and_written_elsewhere_is_the_same(make: Callable[[], list[Tensor]]) -> None:
    tensors = make()
    for tensor in tensors:
        tensor.copy_(torch.randn(tensor.shape))
    before = [tensor.clone() for tensor in tensors]
    blocks = BlockBytes(tensors)
    content = blocks.read(2)
    assert content.dtype == np.uint8
    assert content.shape == (blocks.num_bytes,)
    blocks.write(0, content)
    for tensor, old in zip(tensors, before, strict=True):
        assert torch.equal(tensor[0], old[2])
        assert torch.equal(tensor[1:], old[1:])


def test_read_block_does_not_change_with_the_cache() -> None:
    tensors = _native()
    blocks = BlockBytes(tensors)
    content = blocks.read(1)
    tensors[0].fill_(1)
    assert not content.any()


def test_size_of_a_block_is_that_of_its_tokens() -> None:
    shape = KVShape(2, 6, 4, torch.float32)
    store = KVStore([shape] * 3, _NUM_BLOCKS, 4, TORCH_DEVICE)
    assert BlockBytes(store.block_tensors()).num_bytes == 3 * 4 * shape.bytes_per_token
