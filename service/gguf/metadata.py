"""Access to a GGUF file's metadata that notices what nobody read."""

from collections.abc import Mapping
from typing import Any

from service.errors import ModelLoadError

_MISSING: Any = object()


class Metadata:
    """The keys of one architecture, read by their names without its prefix.

    Whoever builds a config reads each key that it knows. `check_all_read` then rejects a file with
    any other key of the architecture: what it says would be lost.
    """

    def __init__(self, values: Mapping[str, Any], architecture: str) -> None:
        self._values = values
        self._prefix = f"{architecture}."
        self._read: set[str] = set()

    def has(self, name: str) -> bool:
        """Whether the file has the key."""
        return self._prefix + name in self._values

    def integer(self, name: str, default: int | None = _MISSING, *, minimum: int = 1) -> Any:
        """A whole number of at least `minimum`; for all layers, if the file has one for each.

        Raises:
            ModelLoadError: it is missing without a default, no such number, or differs by layer.
        """
        value = self._for_all_layers(name, default)
        if value is default:
            return value
        if type(value) is not int or not minimum <= value < 2**31:
            raise self._invalid(name, value, f"a whole number from {minimum}")
        return value

    def number(self, name: str, default: float | None = _MISSING) -> Any:
        """A finite number.

        Raises:
            ModelLoadError: it is missing without a default, no such number, or differs by layer.
        """
        value = self._for_all_layers(name, default)
        if value is default:
            return value
        if type(value) not in (int, float) or not abs(value) < 3.5e38:
            raise self._invalid(name, value, "a finite number")
        return value

    def positive(self, name: str, default: float | None = _MISSING) -> Any:
        """A finite number above zero, else as `number`."""
        value = self.number(name, default)
        if value is not default and value <= 0:
            raise self._invalid(name, value, "a number above 0")
        return value

    def text(self, name: str, default: str) -> str:
        """A string.

        Raises:
            ModelLoadError: it is something else.
        """
        value = self.value(name, default)
        if type(value) is not str:
            raise self._invalid(name, value, "a string")
        return value

    def value(self, name: str, default: Any = None) -> Any:
        """Any value, which counts as read."""
        self._read.add(name)
        return self._values.get(self._prefix + name, default)

    def require(self, name: str, *allowed: Any) -> None:
        """Reject the file if it has the key with a value that is not among `allowed`."""
        value = self.value(name, _MISSING)
        if value is not _MISSING and value not in allowed:
            raise ModelLoadError(
                f"{self._prefix}{name} is {shortened(value)}, which is not served for this "
                "architecture."
            )

    def check_all_read(self) -> None:
        """Reject the file if it has a key that was not read and says something.

        0, false and what is empty say nothing.
        """
        for key, value in self._values.items():
            if key.startswith(self._prefix):
                name = key.removeprefix(self._prefix)
                if name not in self._read and value:
                    raise ModelLoadError(
                        f"It has the metadata key {key} = {shortened(value)}, which is not served "
                        "for this architecture."
                    )

    def _for_all_layers(self, name: str, default: Any) -> Any:
        value = self.value(name, default)
        if value is _MISSING:
            raise ModelLoadError(f"It lacks the metadata key {self._prefix}{name}.")
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise ModelLoadError(
                    f"{self._prefix}{name} differs between layers: {shortened(value)}. That is not "
                    "served for this architecture."
                )
            return value[0]
        return value

    def _invalid(self, name: str, value: Any, wanted: str) -> ModelLoadError:
        return ModelLoadError(f"{self._prefix}{name} is {shortened(value)}; it must be {wanted}.")


def shortened(value: Any) -> str:
    """A value of the file for a message: printable, on one line, of at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
