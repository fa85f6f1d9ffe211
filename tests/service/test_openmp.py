import os

import pytest

from service.openmp import bound_spinning


def test_spin_count_is_set_unless_the_operator_has_set_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    bound_spinning()
    assert os.environ.get("GOMP_SPINCOUNT") == "2000"

    monkeypatch.setenv("GOMP_SPINCOUNT", "5")
    bound_spinning()
    assert os.environ.get("GOMP_SPINCOUNT") == "5"


def test_spin_count_is_not_set_beside_a_wait_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    bound_spinning()
    assert os.environ.get("GOMP_SPINCOUNT") is None
