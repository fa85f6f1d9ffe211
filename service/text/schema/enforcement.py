"""The handling of keywords that a grammar cannot enforce."""

from dataclasses import dataclass

from service.text.schema.errors import UnsupportedKeyword


@dataclass(frozen=True, slots=True)
class UnenforcedKeyword:
    """A keyword that the grammar does not enforce, or enforces only in part."""

    path: str
    reason: str


class Enforcement:
    """Handles keywords that a grammar cannot enforce.

    If the schema is strict, such a keyword is an error. Otherwise the keyword is left out and
    recorded in `unenforced`.
    """

    def __init__(self, *, is_strict: bool) -> None:
        self._is_strict = is_strict
        self._reasons: dict[str, str] = {}

    @property
    def unenforced(self) -> tuple[UnenforcedKeyword, ...]:
        """The recorded keywords, each path once."""
        return tuple(UnenforcedKeyword(path, reason) for path, reason in self._reasons.items())

    def cannot_enforce(self, path: str, reason: str) -> None:
        """Record the keyword at `path` as not enforced.

        Raises:
            UnsupportedKeyword: The schema is strict.
        """
        if self._is_strict:
            raise UnsupportedKeyword(path, reason)
        self._reasons.setdefault(path, reason)
