import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.text.stop_strings import StopStrings

# There are only two letters, so that matches and near misses are frequent.
few_letters = st.text("ab", max_size=30)
stops = st.lists(st.text("ab", min_size=1, max_size=5), max_size=4).map(tuple)


def naive(text: str, stop: tuple[str, ...]) -> tuple[str, str | None]:
    """Return the text before the first complete match, and the match: the longest, if several."""
    for end in range(1, len(text) + 1):
        for string in sorted(stop, key=len, reverse=True):
            if text[:end].endswith(string):
                return text[: end - len(string)], string
    return text, None


def feed(pieces: list[str], stop: tuple[str, ...]) -> tuple[str, str | None]:
    stop_strings = StopStrings(stop)
    text = "".join(map(stop_strings.push, pieces)) + stop_strings.flush()
    return text, stop_strings.matched


@given(pieces=st.lists(few_letters, max_size=6), stop=stops)
def test_result_does_not_depend_on_the_pieces(pieces: list[str], stop: tuple[str, ...]) -> None:
    assert feed(pieces, stop) == naive("".join(pieces), stop)


@given(text=few_letters, stop=stops)
def test_only_a_possible_stop_string_is_held_back(text: str, stop: tuple[str, ...]) -> None:
    stop_strings = StopStrings(stop)
    delivered = stop_strings.push(text)
    if stop_strings.matched is None:
        held = text.removeprefix(delivered)
        assert delivered + held == text
        ends = [text[start:] for start in range(len(text))]
        beginnings = [end for end in ends if any(string.startswith(end) for string in stop)]
        assert held == max(beginnings, key=len, default="")


def test_stop_string_split_over_pieces_is_trimmed() -> None:
    stop_strings = StopStrings(("\nUser:",))
    deltas = [stop_strings.push(piece) for piece in ("Hi.\n", "Us", "er", ": more")]
    assert deltas == ["Hi.", "", "", ""]
    assert stop_strings.matched == "\nUser:"
    assert stop_strings.push("even more") == ""
    assert stop_strings.flush() == ""


def test_held_text_without_a_match_is_returned() -> None:
    stop_strings = StopStrings(("\nUser:",))
    deltas = [stop_strings.push(piece) for piece in ("Hi.\nUs", "e it", "\n")]
    assert deltas == ["Hi.", "\nUse it", ""]
    assert stop_strings.flush() == "\n"
    assert stop_strings.matched is None


@pytest.mark.parametrize(
    ("stop", "text", "before", "matched"),
    [
        (("abcd", "bc"), "xabcd", "xa", "bc"),  # "bc" is complete before "abcd"
        (("bcd", "abcd"), "xabcd", "x", "abcd"),  # both are complete together; "abcd" starts first
        (("ab", "abc"), "xabc", "x", "ab"),
        (("b", "a"), "xaxb", "x", "a"),
    ],
)
def test_first_complete_match_of_overlapping_ones_counts(
    stop: tuple[str, ...], text: str, before: str, matched: str
) -> None:
    assert feed([text], stop) == (before, matched)
