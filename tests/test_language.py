"""Texts keep to the project's language; `python -m tests.language` lists what does not."""

from tests.language import UNCLEAN, is_unclean, violations


def test_clean_folders_have_no_violations() -> None:
    found = [str(violation) for violation in violations() if not is_unclean(violation.path)]
    assert not found, "\n".join(found)


def test_unclean_folders_are_named_once() -> None:
    assert len(UNCLEAN) == len(set(UNCLEAN))
