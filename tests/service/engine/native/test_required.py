import pytest

from tests.support.native_kernels import are_kernels_required


@pytest.mark.parametrize(
    ("are_required", "can_run", "is_failure"),
    [(True, True, True), (True, False, False), (False, True, False), (False, False, False)],
)
def test_missing_kernels_fail_where_required_and_the_cpu_could_run_them(
    are_required: bool, can_run: bool, is_failure: bool
) -> None:
    assert are_kernels_required(are_required=are_required, can_run=can_run) is is_failure
