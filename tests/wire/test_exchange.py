"""The format of recorded responses."""

from tests.wire.exchange import folded, without_varying


def test_equal_ids_get_equal_placeholders() -> None:
    first, second = "a" * 32, "b" * 32
    text = f"chatcmpl-{first} chatcmpl-{first} chatcmpl-{second}"
    assert without_varying(text) == (
        "chatcmpl-{completion id} chatcmpl-{completion id} chatcmpl-{completion id 2}"
    )


def test_only_time_of_completion_is_replaced() -> None:
    text = '"created":1700000001 "created":1700000000 "id":"call_1"'
    assert without_varying(text) == '"created":{created} "created":1700000000 "id":"call_1"'


def test_long_line_is_broken_between_fields() -> None:
    value = "x" * 100
    body = f'data: {{"a":"{value}","b":[1,2]}}\n\ndata: {{"a":1,"b":2}}'
    broken = f'data: {{"a":"{value}",\\\n"b":[1,2]}}\n\ndata: {{"a":1,"b":2}}'
    assert folded(body) == broken
