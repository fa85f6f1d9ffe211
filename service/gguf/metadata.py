"""Access to a GGUF file's metadata that detects keys which are not read."""

from collections.abc import Mapping
from typing import Any

from service.errors import ModelLoadError

_MISSING: Any = object()


class Metadata:
    """The metadata keys of one architecture, by their names without its prefix.

    The functions in `fields.py` read the keys that they support. `check_all_read` then rejects a
    file with other keys of the architecture, because they would be ignored.
    """

    def __init__(self, values: Mapping[str, Any], architecture: str) -> None:
        self._values = values
        self._prefix = f"{architecture}."
        self._read: set[str] = set()

    def has(self, name: str) -> bool:
        """Return True if the file has the key."""
        return self._prefix + name in self._values

    def integer(self, name: str, default: int | None = _MISSING, *, minimum: int = 1) -> Any:
        """Return an integer of at least `minimum`.

        The file may have a list with a value for each layer, which must be equal.

        Raises:
            ModelLoadError: The key is missing without a default, is not such a number, or differs
                between layers.
        """
        value = self._for_all_layers(name, default)
        if value is default:
            return value
        if type(value) is not int or not minimum <= value < 2**31:
            raise self._invalid(name, value, f"a whole number from {minimum}")
        return value

    def number(self, name: str, default: float | None = _MISSING) -> Any:
        """Return a finite number.

        The file may have a list with a value for each layer, which must be equal.

        Raises:
            ModelLoadError: The key is missing without a default, is not such a number, or differs
                between layers.
        """
        value = self._for_all_layers(name, default)
        if value is default:
            return value
        if type(value) not in (int, float) or not abs(value) < 3.5e38:
            raise self._invalid(name, value, "a finite number")
        return value

    def positive(self, name: str, default: float | None = _MISSING) -> Any:
        """Return a finite number above 0; see `number`."""
        value = self.number(name, default)
        if value is not default and value <= 0:
            raise self._invalid(name, value, "a number above 0")
        return value

    def text(self, name: str, default: str) -> str:
        """Return a string.

        Raises:
            ModelLoadError: The value is not a string.
        """
        value = self.value(name, default)
        if type(value) is not str:
            raise self._invalid(name, value, "a string")
        return value

    def value(self, name: str, default: Any = None) -> Any:
        """Return a value of any type, and mark the key as read."""
        self._read.add(name)
        return self._values.get(self._prefix + name, default)

    def require(self, name: str, *allowed: Any) -> None:
        """Check that the key is missing or has one of the `allowed` values.

        Raises:
            ModelLoadError: The key has another value.
        """
        value = self.value(name, _MISSING)
        if value is not _MISSING and value not in allowed:
            raise ModelLoadError(
                f"{self._prefix}{name} is {shortened(value)}, which is not served for this "
                "architecture."
            )

    def check_all_read(self) -> None:
        """Check that every key was read, except those with the values 0, false or empty.

        Raises:
            ModelLoadError: A key was not read.
        """
        for key, value in self._values.items():
            if key.startswith(self._prefix):
                name = key.removeprefix(self._prefix)
                if name not in self._read and value:
                    raise ModelLoadError(
                        f"The file has the metadata key {key} = {shortened(value)}, which is not "
                        "served for this architecture."
                    )

    def _for_all_layers(self, name: str, default: Any) -> Any:
        value = self.value(name, default)
        if value is _MISSING:
            raise ModelLoadError(f"The file lacks the metadata key {self._prefix}{name}.")
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise ModelLoadError(
                    f"{self._prefix}{name} differs between layers: {shortened(value)}. That is not "
                    "served for this architecture."
                )
            return value[0]
        return value

    def _invalid(self, name: str, value: Any, expected: str) -> ModelLoadError:
        return ModelLoadError(f"{self._prefix}{name} is {shortened(value)}; it must be {expected}.")


def shortened(value: Any) -> str:
    """Format a value for a message: printable, on one line, at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
