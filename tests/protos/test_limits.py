"""The limits of request fields, beside the comments of the .proto files."""

import math
import re
from collections.abc import Iterator

import pytest

from chatrpc.v1.comments import COMMENTS
from chatrpc.v1.limits import LIMITS, Limits

UNLIMITED = Limits()


def numbers(limits: Limits) -> Iterator[float]:
    """Yield the numbers of a field's limits, of its elements and of its keys."""
    for name in ("minimum", "maximum", "above", "min_size", "max_size"):
        number = getattr(limits, name)
        if number != getattr(UNLIMITED, name):
            yield number
    for part in (limits.element, limits.key):
        if part is not None:
            yield from numbers(part)


@pytest.mark.parametrize("field", LIMITS)
def test_comment_of_limited_field_states_its_limits(field: str) -> None:
    stated = {float(number) for number in re.findall(r"-?\d+", COMMENTS[field])}
    assert stated >= set(numbers(LIMITS[field]))


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(minimum=0, maximum=2), "between 0 and 2"),
        (Limits(minimum=1), "at least 1"),
        (Limits(maximum=20), "at most 20"),
        (Limits(above=0, maximum=1000), "above 0 and at most 1000"),
    ],
)
def test_range_is_stated_in_words(limits: Limits, words: str) -> None:
    assert limits.range == words


def test_nan_is_never_allowed() -> None:
    assert not Limits().allow(math.nan)
    assert Limits(above=0).allow(0.1)
    assert not Limits(above=0).allow(0)
