"""Texts keep to the project's language; `python -m tests.language` lists what does not."""

import pytest

from tests.language import check_python, violations


def test_repository_has_no_violations() -> None:
    found = [str(violation) for violation in violations()]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('"""What a step returns."""', 'begins with "What a step"'),
        ('"""Returns a step"""', "does not end with a full stop"),
        ('"""returns a step."""', "use a capital letter"),
        ("x = 1", "the module has no docstring"),
        ('"""A module."""\nclass A:\n    pass', "class A has no docstring"),
        ('"""A module."""\n# It is refused by name.', '"refused": write reject'),
        ('"""A module."""\n# The end of the\n# answer.', '"the answer": write response'),
        ('"""A module."""\nraise E("Nobody is here now.")', '"nobody": write no client'),
        ('"""A module."""\ndef lean_decoder(): ...', '"lean decoder": write native decoder'),
        ('"""A module."""\n_log.info("two words")', "snake_case constant"),
        ('"""A module."""\nlog = structlog.get_logger()', "by __name__"),
    ],
)
def test_violation_is_found_in_a_module(source: str, expected: str) -> None:
    [(_, message)] = check_python("service/example.py", source)
    assert expected in message


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("test_a_full_queue_rejects", "without an article"),
        ("test_full_queue", "name subject, condition and result"),
    ],
)
def test_violation_is_found_in_the_name_of_a_test(name: str, expected: str) -> None:
    [(_, message)] = check_python("tests/test_example.py", f"def {name}(): ...")
    assert expected in message


@pytest.mark.parametrize(
    "source",
    [
        '"""Return the next token."""',
        '"""gRPC channels."""',
        '"""`nobody` is in backticks."""',
        '"""A module."""\n# A connection refused by the peer.',
        '"""A module."""\n_log.info("queue_full", size=1)',
        '"""A module."""\nlog = structlog.get_logger(__name__)',
    ],
)
def test_plain_module_has_no_violation(source: str) -> None:
    assert list(check_python("service/example.py", source)) == []
