"""A grammar that is a list of the answers it allows."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FakeConstraint:
    """`service.domain.grammar.Constraint` that allows these answers, each ended by `end`.

    Args:
        fails_at: the matcher fails when it is told of the answer's token of this number.
    """

    answers: tuple[tuple[int, ...], ...]
    end: int
    fails_at: int | None = None

    def matcher(self) -> "FakeMatcher":
        return FakeMatcher(self)


class FakeMatcher:
    """`service.domain.grammar.Matcher`."""

    def __init__(self, constraint: FakeConstraint) -> None:
        self._constraint = constraint
        self._said: tuple[int, ...] = ()

    def allowed_tokens(self) -> bytes:
        bits = sum(1 << token_id for token_id in self._next())
        return bits.to_bytes(-(-bits.bit_length() // 8), "little")

    def forced_tokens(self) -> tuple[int, ...]:
        forced: tuple[int, ...] = ()
        while len(following := self._next(forced)) == 1:
            forced += tuple(following)
        return forced

    def advance(self, token_id: int) -> None:
        assert token_id in self._next(), f"{token_id} is not allowed behind {self._said}"
        self._said += (token_id,)
        if len(self._said) == self._constraint.fails_at:
            raise ValueError("the grammar is broken")

    def fork(self) -> "FakeMatcher":
        matcher = FakeMatcher(self._constraint)
        matcher._said = self._said
        return matcher

    def _next(self, ahead: tuple[int, ...] = ()) -> set[int]:
        said = self._said + ahead
        ended = [(*answer, self._constraint.end) for answer in self._constraint.answers]
        return {
            answer[len(said)]
            for answer in ended
            if len(answer) > len(said) and answer[: len(said)] == said
        }
