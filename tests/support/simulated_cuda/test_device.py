"""The simulated device does what CUDA does, as far as the engine's tests rely on it."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.device import TORCH_DEVICE
from tests.support.simulated_cuda.device import allocated_bytes, counting, device_loss, memory_limit

pytestmark = pytest.mark.simulated_cuda


def on_device(*values: float) -> Tensor:
    return torch.tensor(values, device=TORCH_DEVICE)


def test_operators_compute_what_the_cpu_computes() -> None:
    a, b = torch.randn(3, 4), torch.randn(4, 5)
    got = F.softmax(a.cuda() @ b.cuda(), -1)
    assert got.device == torch.device("cuda:0")
    torch.testing.assert_close(got.cpu(), F.softmax(a @ b, -1))


def test_views_share_memory() -> None:
    whole = torch.zeros(4, 6, device=TORCH_DEVICE)
    whole.t()[2].fill_(5.0)
    whole[0].index_copy_(0, torch.tensor([5], device=TORCH_DEVICE), on_device(7.0))
    assert whole.tolist() == [[0, 0, 5, 0, 0, 7]] + [[0, 0, 5, 0, 0, 0]] * 3


@pytest.mark.parametrize(
    "mix",
    [
        lambda: on_device(1.0, 2.0) + torch.ones(2),
        lambda: torch.cat([on_device(1.0), torch.ones(1)]),
        lambda: torch.index_select(on_device(1.0), 0, torch.tensor([0])),
        lambda: F.rms_norm(on_device(1.0, 2.0), (2,), torch.ones(2)),
    ],
    ids=["add", "cat", "index_select", "rms_norm"],
)
def test_operators_reject_tensors_of_two_devices(mix: object) -> None:
    assert callable(mix)
    with pytest.raises(RuntimeError, match="same device"):
        mix()


def test_scalars_of_the_cpu_are_accepted() -> None:
    assert (on_device(1.0, 2.0) * torch.tensor(2.0)).tolist() == [2.0, 4.0]


def test_memory_of_the_device_is_not_memory_of_the_host() -> None:
    with pytest.raises(TypeError, match="can't convert cuda"):
        on_device(1.0).numpy()


def test_kernels_copies_and_waits_are_counted() -> None:
    source = torch.ones(3)
    with counting() as counts:
        x = source.to(TORCH_DEVICE)
        y = x.add(1.0).mul(2.0)
    assert (counts.kernels, counts.copies_to_device, counts.waits) == (2, 1, 1)
    assert counts.operators["aten::mul"] == 1
    with counting() as counts:
        assert y.tolist() == [4.0] * 3
        assert y[0].item() == 4.0
        torch.cuda.synchronize()
    assert (counts.kernels, counts.copies_to_host, counts.copies, counts.waits) == (0, 2, 2, 3)


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.nonzero(),
        lambda x: x[x > 1],
        lambda x: x.index_put_((x > 1,), x[1:]),
        lambda x: x.unique(),
        lambda x: torch.equal(x, x),
    ],
    ids=["nonzero", "mask", "put", "unique", "equal"],
)
def test_results_whose_size_depends_on_values_wait(read: object) -> None:
    assert callable(read)
    x = on_device(1.0, 2.0)
    with counting() as counts:
        read(x)
    assert counts.waits == 1


def pinned(*values: float) -> Tensor:
    memory = torch.empty(len(values), pin_memory=True)
    assert memory.is_pinned()
    assert not torch.empty(1).is_pinned()
    return memory.copy_(torch.tensor(values))


def test_copy_from_pinned_memory_does_not_wait() -> None:
    source = pinned(1.0, 2.0)
    with counting() as counts:
        x = source.to(TORCH_DEVICE, non_blocking=True)
    assert (counts.copies_to_device, counts.waits) == (1, 0)
    assert x.tolist() == [1.0, 2.0]
    with counting() as counts:
        torch.ones(2).to(TORCH_DEVICE, non_blocking=True)
        source.to(TORCH_DEVICE)
    assert counts.waits == 2


def test_pinned_memory_may_not_change_before_the_next_wait() -> None:
    source = pinned(1.0)
    x = source.to(TORCH_DEVICE, non_blocking=True)
    source.fill_(2.0)
    with pytest.raises(RuntimeError, match="Pinned memory was changed"):
        x.item()


def test_copy_to_pinned_memory_is_complete_after_the_next_wait() -> None:
    target = pinned(0.0)
    with counting() as counts:
        target.copy_(on_device(5.0), non_blocking=True)
    assert (counts.copies_to_host, counts.waits) == (1, 1)  # the wait is that of `on_device`
    assert target.item() == 0.0
    torch.cuda.current_stream().synchronize()
    assert target.item() == 5.0


def test_memory_is_limited_and_freed() -> None:
    before = allocated_bytes()
    x = torch.zeros(1000, device=TORCH_DEVICE)
    assert allocated_bytes() - before == 4096
    assert torch.cuda.mem_get_info()[1] - torch.cuda.mem_get_info()[0] == allocated_bytes()
    with memory_limit(1024), pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        x + 1.0
    torch.cuda.reset_peak_memory_stats()
    x = x + 1.0
    assert torch.cuda.max_memory_allocated() == before + 8192
    assert allocated_bytes() - before == 4096


def test_lost_device_fails_all_later_calls() -> None:
    x = on_device(1.0)
    with device_loss(num_kernels=1):
        x + 1.0
        for call in (lambda: x + 1.0, x.item, x.cpu):
            with pytest.raises(torch.AcceleratorError, match="illegal memory access"):
                call()
