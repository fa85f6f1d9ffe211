"""What becomes of keywords that a grammar cannot enforce."""

from dataclasses import dataclass

from service.text.schema.errors import UnsupportedKeyword


@dataclass(frozen=True, slots=True)
class Weakening:
    """A keyword that is not enforced, or not as far as it goes."""

    path: str
    reason: str


class Enforcement:
    """What becomes of a keyword that a grammar cannot enforce.

    In a schema that must be followed exactly it is an error. In any other it is left out, and
    noted in `weakenings`.
    """

    def __init__(self, *, is_strict: bool) -> None:
        self._is_strict = is_strict
        self._reasons: dict[str, str] = {}

    @property
    def weakenings(self) -> tuple[Weakening, ...]:
        return tuple(Weakening(path, reason) for path, reason in self._reasons.items())

    def give_up(self, path: str, reason: str) -> None:
        """
        Raises:
            UnsupportedKeyword: the schema must be followed exactly.
        """
        if self._is_strict:
            raise UnsupportedKeyword(path, reason)
        self._reasons.setdefault(path, reason)
