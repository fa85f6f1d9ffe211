import torch

from service.engine.kv_store import KVShape, KVStore

CPU = torch.device("cpu")


def test_bytes_are_those_of_keys_and_values() -> None:
    assert KVShape(4, 8, 6, torch.bfloat16).bytes_per_token == 4 * (8 + 6) * 2
    assert KVShape(4, 8, 6, torch.int8).bytes_per_token == 4 * (8 + 6 + 2 * 4)


def test_written_values_are_gathered_in_block_order() -> None:
    store = KVStore([KVShape(2, 3, 5, torch.float32)], num_blocks=6, block_size=4, device=CPU)
    blocks, length = [4, 1], 7
    slots = torch.tensor([blocks[i // 4] * 4 + i % 4 for i in range(length)])
    key, value = torch.randn(2, length, 3), torch.randn(2, length, 5)
    store.write(0, slots[:5], key[:, :5], value[:, :5])
    store.write(0, slots[5:], key[:, 5:], value[:, 5:])
    keys, values = store.gather(0, torch.tensor([blocks]))
    assert keys.shape == (2, 1, 8, 3)
    assert values.shape == (2, 1, 8, 5)
    assert torch.equal(keys[:, 0, :length], key)
    assert torch.equal(values[:, 0, :length], value)


def test_layers_and_sequences_keep_apart() -> None:
    shapes = [KVShape(1, 2, 2, torch.float32), KVShape(3, 4, 4, torch.float32)]
    store = KVStore(shapes, num_blocks=3, block_size=2, device=CPU)
    store.write(0, torch.tensor([2, 4]), torch.ones(1, 2, 2), torch.ones(1, 2, 2))
    other = store.gather(1, torch.tensor([[0, 1, 2]]))
    assert not other[0].any()
    keys, _ = store.gather(0, torch.tensor([[0], [1], [2]]))
    assert keys[0, :, :, 0].tolist() == [[0, 0], [1, 0], [1, 0]]
