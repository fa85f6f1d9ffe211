import pytest

from service.text.schema.terminal_checks import TerminalChecker, TerminalTooComplex


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
def test_empty_terminal_is_recognized(terminal: str, is_empty: bool) -> None:
    assert TerminalChecker().is_empty(terminal) == is_empty


def test_long_strings_are_matched_in_linear_time() -> None:
    terminals = TerminalChecker()
    terminal = '/"(a+a+)+b"/'
    assert terminals.matches(terminal, "aab")
    assert not terminals.matches(terminal, "a" * 200)
    assert terminals.matches(terminal, "a" * 200 + "b")


def test_too_complex_terminal_raises() -> None:
    with pytest.raises(TerminalTooComplex):
        TerminalChecker().matches(
            '/"(((a{1,50}){1,50}){1,50}x?){1,50}(b|c)*.{900}"/ & /".*.{800}a"/', "a"
        )
