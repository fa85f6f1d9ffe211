"""A grammar that allows a list of outputs."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class FakeConstraint:
    """An `OutputConstraint` that allows these outputs, each followed by `end`.

    Args:
        outputs: The allowed outputs, without their end.
        end: The token that ends an output.
        fails_at: The matcher fails when it advances over the token with this index.
    """

    outputs: tuple[tuple[int, ...], ...]
    end: int
    fails_at: int | None = None
    grammar: str = ""
    begun: str = ""
    failure: str | None = None

    def is_fulfilled(self, token_ids: Sequence[int]) -> bool:
        return tuple(token_ids) in self.outputs

    def after(self, text: str) -> "FakeConstraint":
        raise NotImplementedError

    def matcher(self) -> "FakeMatcher":
        return FakeMatcher(self)


class FakeMatcher:
    """`service.domain.grammar.Matcher`."""

    def __init__(self, constraint: FakeConstraint) -> None:
        self._constraint = constraint
        self._token_ids: tuple[int, ...] = ()

    def allowed_tokens(self) -> bytes:
        bits = sum(1 << token_id for token_id in self._next())
        return bits.to_bytes(-(-bits.bit_length() // 8), "little")

    def forced_tokens(self) -> tuple[int, ...]:
        forced: tuple[int, ...] = ()
        while len(following := self._next(forced)) == 1:
            forced += tuple(following)
        return forced

    def advance(self, token_id: int) -> None:
        assert token_id in self._next(), f"{token_id} is not allowed after {self._token_ids}"
        self._token_ids += (token_id,)
        if len(self._token_ids) == self._constraint.fails_at:
            raise ValueError("the grammar is broken")

    def fork(self) -> "FakeMatcher":
        matcher = FakeMatcher(self._constraint)
        matcher._token_ids = self._token_ids
        return matcher

    def _next(self, ahead: tuple[int, ...] = ()) -> set[int]:
        prefix = self._token_ids + ahead
        ended = [(*output, self._constraint.end) for output in self._constraint.outputs]
        return {
            output[len(prefix)]
            for output in ended
            if len(output) > len(prefix) and output[: len(prefix)] == prefix
        }
