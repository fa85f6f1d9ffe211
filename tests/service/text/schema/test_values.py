import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.text.schema import values
from service.text.schema.values import dumps, identity, loads, quoted, step, type_of

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.decimals(-1000, 1000, places=4) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_what_is_written_is_read_again_without_loss(value: Any) -> None:
    assert identity(loads(dumps(value))) == identity(value)
    json.loads(dumps(value))


@pytest.mark.parametrize(
    "text", [str(2**53 + 1), str(2**64), "1E+400", "0.1000", "-0.0", "1E-7", "123456789" * 5]
)
def test_numbers_keep_their_digits(text: str) -> None:
    assert dumps(loads(text)) == text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": 1, "a": 2}', "occurs twice"),
        ("NaN", "not a number"),
        ("1e99999", "exponent"),
        ("1e999999999999", "too long"),
        ("9" * 81, "digits"),
        ("9" * 5_000, "too long"),
        ('"\\ud800"', "surrogates"),
    ],
)
def test_what_is_not_exact_is_rejected(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        loads(text)


def test_equal_values_have_one_identity() -> None:
    assert identity(1) == identity(Decimal("1.0")) != identity(True)
    assert identity({"a": 1, "b": [2]}) == identity({"b": [Decimal("2.00")], "a": 1})
    assert identity(0) != identity(False) != identity(None) != identity("")
    assert [type_of(value) for value in (1, Decimal("1.0"), Decimal("1.5"), True)] == [
        "integer",
        "integer",
        "fraction",
        "boolean",
    ]


def test_paths_quote_what_is_no_plain_name() -> None:
    path = ""
    for key in ("properties", "a.b", 'q"', "x-y", "", 3, "$defs"):
        path = step(path, key)
    assert path == '.properties["a.b"]["q\\""].x-y[""][3].$defs'


def test_strings_have_one_form() -> None:
    assert quoted('é"\\\n\x01/😀') == '"é\\"\\\\\\n\\u0001/😀"'
    assert values.MAX_DIGITS >= 40
