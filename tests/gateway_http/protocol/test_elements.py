"""Bodies with many elements, and bodies with few that look like many."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_http.protocol.elements import MAX_DEPTH, MAX_ELEMENTS, check_elements
from gateway_http.protocol.error import InvalidRequest

HALF, QUARTER = MAX_ELEMENTS // 2, MAX_ELEMENTS // 4


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def rejection(body: bytes) -> Any:
    with pytest.raises(InvalidRequest) as caught:
        check_elements(body)
    assert caught.value.status == 400
    return caught.value.body.error


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("metadata", {str(i): "" for i in range(HALF)}),
        ("messages", [{"role": "user"}] * QUARTER + [{}] * QUARTER),
        ("messages", [{"role": "user", "content": [{}] * MAX_ELEMENTS}]),
        ("chat_template_kwargs", {"x": [[]] * MAX_ELEMENTS}),
        ("stop", ["a"] * MAX_ELEMENTS),
        ("stop", [True, None] * HALF),
        ("logit_bias", {str(i): 1.5 for i in range(HALF)}),
        ("prompt", [1] * (20 * MAX_ELEMENTS)),
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_too_many_elements_are_rejected_with_their_field(
    field: str, value: object, indent: int | None
) -> None:
    body = {"model": "m", field: value, "user": "u"}
    error = rejection(json.dumps(body, indent=indent).encode())
    assert error.param == field
    assert error.message.startswith(f"Invalid '{field}': too many elements.")
    assert str(MAX_ELEMENTS) in error.message


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": ',[{"\\",[{\\' * MAX_ELEMENTS}]},
        {"messages": [{"role": "user", "content": "\\" * MAX_ELEMENTS + '",{}' * HALF}] * 2},
        {'"\\\\"' * HALF: '\\"' * HALF},
        {"prompt": [[50_000] * 8192] * 128},
        {"prompt": [-1.5e-7] * MAX_ELEMENTS},
        {"metadata": {str(i): "" for i in range(HALF - 2)}},
        {"messages": [{"role": "user", "content": "a"}] * 19_000},
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_long_texts_and_lists_of_numbers_are_allowed(
    body: dict[str, Any], indent: int | None
) -> None:
    check_elements(json.dumps(body, indent=indent).encode())


def test_deeply_nested_body_is_rejected() -> None:
    check_elements(f'{{"a": {nested(MAX_DEPTH - 1)}, "b": {nested(MAX_DEPTH - 1)}}}'.encode())
    error = rejection(f'{{"a": [], "b": {nested(MAX_DEPTH)}}}'.encode())
    assert error.param == "b"
    assert "nested too deeply" in error.message


@pytest.mark.parametrize(
    "body",
    [
        b'"' * 1_000_000,
        b'"' + b'\\"' * 1_000_000,
        b"[" + b"," * 1_000_000,
        b"[1" + b" " * 1_000_000,
        b"]" * 1_000_000,
        b"-" * 1_000_000,
        b'["' + b"[" * 1_000_000,
        b"\\" * 1_000_001,
    ],
)
def test_bytes_that_are_not_json_are_read_once(body: bytes) -> None:
    """If the time grew with the square of the size, the test would exceed its time limit."""
    for content in (body, body + body):
        with suppress(InvalidRequest):
            check_elements(content)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def num_elements(value: object, *, is_number_counted: bool) -> int:
    """Return the number of keys and values of a value."""
    match value:
        case list():
            inner: list[object] = value
        case dict():
            inner = [*value, *value.values()]
        case int() | float() if not isinstance(value, bool):
            return int(is_number_counted)
        case _:
            return 1
    return 1 + sum(num_elements(each, is_number_counted=is_number_counted) for each in inner)


@given(JSON, st.booleans())
def test_numbers_in_a_row_count_as_one_element_and_others_as_one_each(
    value: object, is_ascii: bool
) -> None:
    body = json.dumps(value, ensure_ascii=is_ascii).encode()
    check_elements(body, num_elements(value, is_number_counted=True))
    least = num_elements(value, is_number_counted=False)
    if least > 0:
        with pytest.raises(InvalidRequest):
            check_elements(body, least - 1)
