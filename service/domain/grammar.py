"""Grammars that constrain generated tokens."""

from collections.abc import Sequence
from typing import Protocol


class Matcher(Protocol):
    """Where one answer stands in the grammar that it must follow.

    One thread at a time uses it, not always the same. While it computes, others should have the
    interpreter: the model's next step is under way. What it raises ends its own request.
    """

    def allowed_tokens(self) -> bytes:
        """A bit for each token id that may come next, the lowest bit of the first byte for 0.

        Where the grammar is fulfilled, the tokens that end the answer are among them. Behind such a
        token there is none, and where there is none the answer ends.
        """
        ...

    def forced_tokens(self) -> tuple[int, ...]:
        """What must come next, as far as there is no choice; it may be nothing.

        A guess will do: it saves time where `allowed_tokens` agrees, and changes no answer.
        """
        ...

    def advance(self, token_id: int) -> None:
        """Take in a token that `allowed_tokens` allows."""
        ...

    def fork(self) -> "Matcher":
        """A matcher at the same place, to look ahead with: this one does not hear of it.

        It raises where this one would have to give up: what is only guessed ends no answer.
        """
        ...


class Constraint(Protocol):
    """A compiled grammar. Immutable, and shared by the requests that ask for the same."""

    def matcher(self) -> Matcher:
        """A matcher at the start of an answer."""
        ...


class OutputConstraint(Constraint, Protocol):
    """A constraint of one request, which can turn out to cost too much to be followed further."""

    failure: str | None  # why, once that has happened: the answer was ended for it

    def is_fulfilled(self, token_ids: Sequence[int]) -> bool:
        """Whether an answer of these tokens, without its end, is whole."""
        ...

    def after(self, text: str) -> "OutputConstraint":
        """Return the constraint of what follows `text`, with which the answer begins.

        Raises:
            InvalidGrammar: no answer begins so.
        """
        ...


class Grammars(Protocol):
    """Compiles grammars for one model's tokens. Safe to call from any thread."""

    def control_token_id(self, text: str) -> int | None:
        """The id of the token that a grammar can name by it alone; None where `text` is text.

        Among them are special tokens, and others that look like one, `<tool_call>` say.
        """
        ...

    def compile(self, grammar: str) -> OutputConstraint:
        """The grammar, in llguidance's notation, compiled or from the cache.

        Raises:
            InvalidGrammar: it is malformed, cannot be fulfilled or takes too much to compile.
        """
        ...

    def cached(self, grammar: str) -> OutputConstraint | None:
        """Return the grammar if it has been compiled, without any wait. None: it has not been.

        Raises:
            InvalidGrammar: it could not be compiled.
        """
        ...
