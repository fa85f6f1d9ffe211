from hypothesis import given
from hypothesis import strategies as st

from service.engine.fairness import split_budget


def test_split_gives_each_what_it_needs_if_there_is_enough() -> None:
    assert split_budget(100, [10, 20, 30], [1, 1, 1]) == [10, 20, 30]


def test_split_gives_the_rest_of_a_small_demand_to_the_others() -> None:
    assert split_budget(90, [100, 20, 60], [1, 1, 1]) == [35, 20, 35]


def test_split_follows_the_weights() -> None:
    assert split_budget(100, [1000, 1000], [1, 3]) == [25, 75]


def test_split_of_a_small_budget_gives_the_first_ones_what_rounding_leaves() -> None:
    assert split_budget(2, [9, 9, 9], [1, 1, 1]) == [1, 1, 0]


_parties = st.lists(st.tuples(st.integers(0, 50), st.integers(1, 5)), max_size=8)


@given(st.integers(0, 120), _parties)
def test_split_is_weighted_max_min_fair(budget: int, parties: list[tuple[int, int]]) -> None:
    demands, weights = [d for d, _ in parties], [w for _, w in parties]
    grants = split_budget(budget, demands, weights)
    assert sum(grants) == min(budget, sum(demands))
    assert all(0 <= grant <= demand for grant, demand in zip(grants, demands, strict=True))
    for i, demand in enumerate(demands):
        if grants[i] < demand:  # no caller has more per weight, except by rounding
            assert all(
                grants[j] / weights[j] <= (grants[i] + 1) / weights[i] + 1 / weights[j]
                for j in range(len(demands))
            )
