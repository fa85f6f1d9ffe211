import pytest

from service.text.schema.terminals import Terminals, TooCostly


@pytest.mark.parametrize(
    ("terminal", "is_empty"),
    [
        ("", True),
        ("/a/", False),
        ("/ab+c/ & /ac/", True),
        ("/ab+c/ & /a.*/", False),
        ("(/a/ & /b/)", True),
        ('"a & b"', False),
        ("/a{3,5}/ & ~(/a*/)", True),
    ],
)
def test_terminal_that_matches_nothing_is_known(terminal: str, is_empty: bool) -> None:
    assert Terminals().is_empty(terminal) == is_empty


def test_strings_are_matched_without_a_limit_on_time() -> None:
    terminals = Terminals()
    terminal = '/"(a+a+)+b"/'
    assert terminals.matches(terminal, "aab")
    assert not terminals.matches(terminal, "a" * 200)
    assert terminals.matches(terminal, "a" * 200 + "b")


def test_terminal_that_takes_too_much_is_an_error() -> None:
    with pytest.raises(TooCostly):
        Terminals().matches(
            '/"(((a{1,50}){1,50}){1,50}x?){1,50}(b|c)*.{900}"/ & /".*.{800}a"/', "a"
        )
