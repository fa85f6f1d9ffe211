"""Fields that clients may send under several names."""

from typing import TypeVar

_Value = TypeVar("_Value")


def first_given(*values: _Value | None) -> _Value | None:
    """Return the first value that is not None; None if there is none."""
    return next((value for value in values if value is not None), None)
