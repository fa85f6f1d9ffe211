"""The choice of `VarlenAttention`. The kernel of CUDA is replaced by an operator for the CPU."""

from collections.abc import Iterator

import pytest
import torch

from service.engine.attention import GatheredAttention
from service.engine.kv_store import KVShape
from service.engine.paged_attention import check_results, make_paged_attention
from tests.support import varlen_operator

CPU = torch.device("cpu")
SHAPE = KVShape(2, 16, 16, torch.bfloat16)

varlen_operator.install("CPU")


@pytest.fixture
def calls() -> Iterator[list[varlen_operator.Call]]:
    varlen_operator.calls.clear()
    yield varlen_operator.calls
    varlen_operator.calls.clear()


@pytest.mark.parametrize("num_heads", [2, 6])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_results_of_a_right_kernel_are_accepted(num_heads: int, dtype: torch.dtype) -> None:
    check_results(KVShape(2, 16, 16, dtype), num_heads, 256, CPU)


@pytest.mark.parametrize("num_heads", [2, 4])
def test_context_is_divided_only_where_the_kernel_puts_it_together_again(
    calls: list[varlen_operator.Call], num_heads: int
) -> None:
    check_results(SHAPE, num_heads, 256, CPU)
    is_decode = {call.max_rows == 1 for call in calls}
    assert is_decode == {True, False}
    divided = {(call.max_rows, call.window) for call in calls if call.num_splits is None}
    assert divided == ({(1, (-1, -1))} if num_heads > SHAPE.num_kv_heads else set())


def test_windows_include_the_token_itself(calls: list[varlen_operator.Call]) -> None:
    check_results(SHAPE, 4, 256, CPU)
    assert {call.window for call in calls} == {(-1, -1), (-1, 0), (99, 0), (49, 0)}


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("nan", "wrong by nan"),
        ("first_rows", "wrong by"),
        ("half_context", "wrong by"),
        ("missing", "the kernel fails"),
    ],
)
def test_results_of_a_wrong_kernel_are_rejected(fault: varlen_operator.Fault, reason: str) -> None:
    with varlen_operator.fault(fault), pytest.raises(ValueError, match=reason):
        check_results(SHAPE, 4, 256, CPU)


@pytest.mark.parametrize(
    ("shape", "block_size", "reason"),
    [
        (KVShape(2, 16, 16, torch.float32), 256, "float32"),
        (KVShape(2, 12, 12, torch.bfloat16), 256, "head size 12"),
        (KVShape(2, 264, 264, torch.bfloat16), 256, "head size 264"),
        (KVShape(2, 16, 24, torch.bfloat16), 256, "keys have 16 dimensions, values 24"),
        (SHAPE, 32, "block_size 32"),
    ],
)
def test_shapes_that_the_kernel_does_not_support_are_rejected(
    shape: KVShape, block_size: int, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        check_results(shape, 4, block_size, CPU)


def test_cpu_gathers_the_cache() -> None:
    attention = make_paged_attention([SHAPE], 4, 2, 256, CPU, has_softcap=False)
    assert isinstance(attention, GatheredAttention)
