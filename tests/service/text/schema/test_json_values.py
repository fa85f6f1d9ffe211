import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.text.schema import json_values
from service.text.schema.json_values import (
    comparison_key,
    dumps,
    extend_path,
    loads,
    quoted,
    type_of,
)

json_strategy = st.recursive(
    st.none() | st.booleans() | st.integers() | st.decimals(-1000, 1000, places=4) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(json_strategy)
def test_dumped_value_is_loaded_without_loss(value: Any) -> None:
    assert comparison_key(loads(dumps(value))) == comparison_key(value)
    json.loads(dumps(value))


@pytest.mark.parametrize(
    "text", [str(2**53 + 1), str(2**64), "1E+400", "0.1000", "-0.0", "1E-7", "123456789" * 5]
)
def test_numbers_keep_their_digits(text: str) -> None:
    assert dumps(loads(text)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "occurs twice"),
        ("NaN", "not a JSON number"),
        ("1e99999", "exponent"),
        ("1e999999999999", "too long"),
        ("9" * 81, "digits"),
        ("9" * 5_000, "too long"),
        ('"\\ud800"', "surrogates"),
    ],
)
def test_inexact_json_is_rejected(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loads(text)


def test_equal_values_have_the_same_comparison_key() -> None:
    assert comparison_key(1) == comparison_key(Decimal("1.0")) != comparison_key(True)
    assert comparison_key({"a": 1, "b": [2]}) == comparison_key({"b": [Decimal("2.00")], "a": 1})
    assert comparison_key(0) != comparison_key(False) != comparison_key(None) != comparison_key("")
    assert [type_of(value) for value in (1, Decimal("1.0"), Decimal("1.5"), True)] == [
        "integer",
        "integer",
        "fraction",
        "boolean",
    ]


def test_path_quotes_unusual_names() -> None:
    path = ""
    for key in ("properties", "a.b", 'q"', "x-y", "", 3, "$defs"):
        path = extend_path(path, key)
    assert path == '.properties["a.b"]["q\\""].x-y[""][3].$defs'


def test_string_is_quoted_in_one_form() -> None:
    assert quoted('é"\\\n\x01/😀') == '"é\\"\\\\\\n\\u0001/😀"'
    assert json_values.MAX_DIGITS >= 40
