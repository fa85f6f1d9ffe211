import pytest

from bench.siege import Served, Siege

CALM = Served([100.0, 110.0, 90.0], {"liveness": [5.0]}, [])


def fault(ttft_ms: float = 100.0, probe_ms: float = 5.0, *faults: str) -> str | None:
    served = Served([ttft_ms], {"liveness": [probe_ms]}, list(faults))
    return Siege(50.0, CALM, {"a": served}, {}).fault("a")


def test_bound_is_three_calm_medians_plus_a_step() -> None:
    assert Siege(50.0, CALM, {}, {}).bound_ms == 350.0


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (fault(350.0, 250.0), None),
        (fault(351.0), "TTFT above 350 ms"),
        (fault(100.0, 251.0), "a probe took more than 250 ms"),
        (fault(100.0, 5.0, "HTTP 503", "HTTP 503"), "2 failed: HTTP 503"),
    ],
)
def test_attack_is_successful_if_a_bound_is_broken(found: str | None, expected: str) -> None:
    assert found == expected
