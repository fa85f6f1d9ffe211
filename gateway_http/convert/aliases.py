"""Fields that clients may send under several names."""

from typing import TypeVar

_Value = TypeVar("_Value")


def first_given(*values: _Value | None) -> _Value | None:
    """Return the first value that is not None, or None if all are None."""
    return next((value for value in values if value is not None), None)
