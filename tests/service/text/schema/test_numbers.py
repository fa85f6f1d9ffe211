from decimal import Decimal
from fractions import Fraction
from math import ceil, floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.grammar import OutputConstraint
from service.errors import InvalidGrammar
from service.text.schema import numbers
from service.text.schema.errors import SchemaError
from service.text.schema.json_values import Number
from service.text.schema.numbers import Bounds
from tests.service.text.schema.grammar_checks import GRAMMARS, accepts, compile_schema

EDGES = (0, 1, 9, 10, 99, 100, 2**53, 2**53 + 1, 2**63, 2**64, 10**18, 10**19, 10**30)
DECIMALS = ("0.1", "1e-7", "1e19", "1e400", "99.5", "0.25", "1.05", "0.909", "0.30000000000000004")

limits = st.one_of(
    st.sampled_from([sign * edge for edge in EDGES for sign in (1, -1)]),
    st.sampled_from([Decimal(sign + text) for text in DECIMALS for sign in ("", "-")]),
    st.integers(-1000, 1000),
    st.decimals(-1000, 1000, places=3),
)
intervals = st.builds(
    Bounds,
    st.none() | limits,
    st.booleans(),
    st.none() | limits,
    st.booleans(),
)


def terminal(text: str) -> OutputConstraint | None:
    """Compile a terminal. Return None if it matches nothing."""
    try:
        return GRAMMARS.compile(f"start: T\nT: {text}") if text else None
    except InvalidGrammar:
        return None


def near(limit: Number | None) -> list[str]:
    """Return the limit and its neighbours as JSON writes them."""
    if limit is None:
        return []
    exact = Fraction(limit)
    whole = exact.numerator // exact.denominator
    written = str(limit) if isinstance(limit, int) else f"{limit:f}"
    longer = written + ("" if "." in written else ".0")
    around = [str(whole + step) for step in (-1, 0, 1, 2)]
    return [*around, written, longer, f"{longer}0", f"{longer}1", f"{longer[:-1]}{longer[-1:]}"]


def is_within(text: str, bounds: Bounds) -> bool:
    """Return True if the number is within the bounds, by exact arithmetic."""
    value = Fraction(text)
    if bounds.lower is not None:
        lower = Fraction(bounds.lower)
        if value < lower or (value == lower and bounds.is_lower_exclusive):
            return False
    if bounds.upper is not None:
        upper = Fraction(bounds.upper)
        if value > upper or (value == upper and bounds.is_upper_exclusive):
            return False
    return True


@given(intervals)
def test_terminal_matches_exactly_the_numbers_within_bounds(bounds: Bounds) -> None:
    integers = terminal(numbers.integers(*bounds.integers()))
    decimals = terminal(numbers.decimals(bounds))
    fractions = terminal(numbers.decimals(bounds, is_fraction=True))
    for text in [*near(bounds.lower), *near(bounds.upper), *near(0), "5", "-5", "0.5", "-0.5"]:
        value = Fraction(text)
        is_in = is_within(text, bounds)
        assert bounds.contains(Decimal(text)) == is_in
        if text.lstrip("-").isdecimal() and text != "-0":
            assert bool(integers and accepts(integers, text)) == is_in, (text, bounds)
        if not (value == 0 and text.startswith("-")):  # JSON need not write -0
            assert bool(decimals and accepts(decimals, text)) == is_in, (text, bounds)
        is_fraction = is_in and value.denominator != 1
        assert bool(fractions and accepts(fractions, text)) == is_fraction, (text, bounds)


MULTIPLES = ("1", "2", "3", "7", "12", "100", "1000", "0.1", "0.01", "0.25", "0.5", "2.5", "7.5")


@given(
    st.sampled_from(MULTIPLES),
    st.sampled_from([None, 0, -50, Decimal("0.5"), -(2**63)]),
    st.sampled_from([None, 1000, 99, Decimal("99.5"), 2**63 - 1]),
    st.booleans(),
    st.data(),
)
def test_schema_accepts_exactly_the_multiples_of_a_number(
    of: str, lower: Number | None, upper: Number | None, is_integer: bool, data: st.DataObject
) -> None:
    unit = Decimal(of)
    schema: dict[str, object] = {"type": "integer" if is_integer else "number", "multipleOf": unit}
    if lower is not None:
        schema["minimum"] = lower
    if upper is not None:
        schema["maximum"] = upper
    step = Fraction(Fraction(of).numerator) if is_integer else Fraction(of)
    if None not in (lower, upper) and ceil(Fraction(lower or 0) / step) > floor(
        Fraction(upper or 0) / step
    ):
        with pytest.raises(SchemaError, match="No JSON value"):
            compile_schema(schema)
        return
    constraint = compile_schema(schema)
    bounds = Bounds(lower=lower, upper=upper)
    factor = data.draw(st.integers(-2000, 2000))
    for text in (f"{unit * factor:f}", f"{unit * factor + Decimal('0.001'):f}", str(factor)):
        value = Fraction(text)
        is_right = is_within(text, bounds) and (value / Fraction(of)).denominator == 1
        if is_integer and "." in text:
            assert not accepts(constraint, text) or value.denominator == 1
        elif not (value == 0 and text.startswith("-")):
            assert not accepts(constraint, text) or is_right, (text, schema)
            if "." not in text:
                assert accepts(constraint, text) == is_right, (text, schema)


@pytest.mark.parametrize(
    ("of", "least"),
    [([6, 4], 12), ([Decimal("0.5"), Decimal("0.75")], Decimal("1.5")), ([Decimal("0.1"), 3], 3)],
)
def test_common_multiple_is_the_least_one(of: list[Number], least: Number) -> None:
    assert numbers.common_multiple(of) == least


@pytest.mark.parametrize("number", [5, -5, 0, Decimal("2.50"), Decimal("-1e-7"), 2**64 + 1])
def test_equals_terminal_matches_all_notations_of_a_number(number: Number) -> None:
    constraint = terminal(numbers.equals(number))
    assert constraint is not None
    written = f"{Decimal(number):f}"
    assert accepts(constraint, written)
    assert accepts(constraint, f"{written}00" if "." in written else f"{written}.00")
    assert not accepts(constraint, f"{written}1" if "." in written else f"{written}.01")
