"""The arguments of a call as Gemma writes them: JSON, but for bare keys and quotes of its own."""

import json
import re
from contextlib import suppress
from typing import Any

_BARE = re.compile(r"[^\s,:{}\[\]]+")
_SPACE = re.compile(r"\s*")
_MAX_DEPTH = 64


def parse_gemma_arguments(text: str, quote: str) -> str | None:
    """The object as JSON; None where it is none. `quote` stands on both sides of a string."""
    with suppress(ValueError, RecursionError):
        if isinstance(json.loads(text), dict):
            return text
    try:
        reader = _Reader(text, quote)
        value = reader.value(0)
        reader.space()
    except ValueError:
        return None
    if reader.place != len(text) or not isinstance(value, dict):
        return None
    with suppress(ValueError):  # a number too large to be one
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    return None


class _Reader:
    """Reads values from `place` on; raises ValueError where there is none."""

    def __init__(self, text: str, quote: str) -> None:
        self.place = 0
        self._text = text
        self._quote = quote

    def space(self) -> None:
        found = _SPACE.match(self._text, self.place)
        self.place = found.end() if found else self.place

    def value(self, depth: int) -> Any:
        self.space()
        if depth > _MAX_DEPTH:
            raise ValueError("too deep")
        if self._takes(self._quote):
            return self._quoted()
        if self._takes("{"):
            return dict(self._items("}", depth, has_keys=True))
        if self._takes("["):
            return [item for _, item in self._items("]", depth, has_keys=False)]
        if self._text.startswith('"', self.place):
            value, self.place = json.JSONDecoder().raw_decode(self._text, self.place)
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
        end = self._text.index(self._quote, self.place)  # ValueError where there is none
        text = self._text[self.place : end]
        self.place = end + len(self._quote)
        return text

    def _bare(self) -> str:
        found = _BARE.match(self._text, self.place)
        if found is None:
            raise ValueError("a value is missing")
        self.place = found.end()
        return found[0]

    def _takes(self, text: str) -> bool:
        if not self._text.startswith(text, self.place):
            return False
        self.place += len(text)
        return True


def _scalar(text: str) -> Any:
    """A number, a truth value or null; any other word is a string that lacks its quotes."""
    with suppress(ValueError):
        return json.loads(text)
    return text
