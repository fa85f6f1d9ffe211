"""Server-sent events, received in any pieces."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from bench.sse import events

STREAM = b': ping\n\ndata: {"a": 1}\n\nevent: x\r\ndata:{"b":\r\ndata: 2}\r\n\r\ndata: [DONE]\n\n'


def test_comments_and_done_are_not_events() -> None:
    assert [data for _, data in events([(1.0, STREAM)])] == [b'{"a": 1}', b'{"b":\n2}']


@given(st.lists(st.integers(min_value=1, max_value=len(STREAM) - 1), unique=True))
def test_events_do_not_depend_on_the_chunks(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    pieces = [(float(b), STREAM[a:b]) for a, b in pairwise(edges)]
    assert [data for _, data in events(pieces)] == [b'{"a": 1}', b'{"b":\n2}']


def test_event_has_the_time_of_its_last_chunk() -> None:
    pieces = [(1.0, b"data: a"), (2.0, b"\n\ndata: b\n\nda"), (3.0, b"ta: c\n"), (4.0, b"\n")]
    assert list(events(pieces)) == [(2.0, b"a"), (2.0, b"b"), (4.0, b"c")]


def test_incomplete_event_is_not_returned() -> None:
    assert list(events([(1.0, b"data: a\n")])) == []
