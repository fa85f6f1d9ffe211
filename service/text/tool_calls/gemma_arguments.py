"""The arguments of a tool call as Gemma writes them: JSON with bare keys and its own quotes."""

import json
import re
from contextlib import suppress
from typing import Any

_BARE = re.compile(r"[^\s,:{}\[\]]+")
_SPACE = re.compile(r"\s*")
_MAX_DEPTH = 64


def parse_gemma_arguments(text: str, quote: str) -> str | None:
    """Return the arguments as JSON, or None if they are not an object.

    Args:
        quote: The text on both sides of a string.
    """
    with suppress(ValueError, RecursionError):
        if isinstance(json.loads(text), dict):
            return text
    try:
        reader = _Reader(text, quote)
        value = reader.value(0)
        reader.space()
    except ValueError:
        return None
    if reader.index != len(text) or not isinstance(value, dict):
        return None
    with suppress(ValueError):  # a number too large for a double
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    return None


class _Reader:
    """A parser of values, at `index` of the text. Its methods raise ValueError on bad syntax."""

    def __init__(self, text: str, quote: str) -> None:
        self.index = 0
        self._text = text
        self._quote = quote

    def space(self) -> None:
        found = _SPACE.match(self._text, self.index)
        self.index = found.end() if found else self.index

    def value(self, depth: int) -> Any:
        self.space()
        if depth > _MAX_DEPTH:
            raise ValueError("the value is nested too deeply")
        if self._takes(self._quote):
            return self._quoted()
        if self._takes("{"):
            return dict(self._items("}", depth, has_keys=True))
        if self._takes("["):
            return [item for _, item in self._items("]", depth, has_keys=False)]
        if self._text.startswith('"', self.index):
            value, self.index = json.JSONDecoder().raw_decode(self._text, self.index)
            return value
        return _scalar(self._bare())

    def _items(self, end: str, depth: int, *, has_keys: bool) -> list[tuple[str, Any]]:
        items: list[tuple[str, Any]] = []
        self.space()
        while not self._takes(end):
            if items and not self._takes(","):
                raise ValueError("a comma is missing")
            key = self._key() if has_keys else ""
            items.append((key, self.value(depth + 1)))
            self.space()
        return items

    def _key(self) -> str:
        self.space()
        key = self._quoted() if self._takes(self._quote) else self._bare().strip('"')
        self.space()
        if not self._takes(":"):
            raise ValueError("a colon is missing")
        return key

    def _quoted(self) -> str:
        end = self._text.index(self._quote, self.index)  # raises ValueError if there is none
        text = self._text[self.index : end]
        self.index = end + len(self._quote)
        return text

    def _bare(self) -> str:
        found = _BARE.match(self._text, self.index)
        if found is None:
            raise ValueError("a value is missing")
        self.index = found.end()
        return found[0]

    def _takes(self, text: str) -> bool:
        if not self._text.startswith(text, self.index):
            return False
        self.index += len(text)
        return True


def _scalar(text: str) -> Any:
    """Return a number, a boolean or None. Any other word is a string without quotes."""
    with suppress(ValueError):
        return json.loads(text)
    return text
