"""Grammars that constrain generated tokens."""

from collections.abc import Sequence
from typing import Protocol


class Matcher(Protocol):
    """The state of one output in its grammar.

    One thread at a time uses it, not always the same. It should release the interpreter's lock
    while it computes, because the model's next step is under way. An exception ends its request
    only.
    """

    def allowed_tokens(self) -> bytes:
        """Return a bit for each token id that may come next, the lowest bit of byte 0 for id 0.

        If the grammar is fulfilled, the tokens that end the output are among them. After such a
        token no token is allowed. If no token is allowed, the output ends.
        """
        ...

    def forced_tokens(self) -> tuple[int, ...]:
        """Return the tokens that must come next, as far as there is no choice; possibly none.

        They are used as a draft: wrong ones are rejected by `allowed_tokens` and change no output.
        """
        ...

    def advance(self, token_id: int) -> None:
        """Append a token that `allowed_tokens` allows."""
        ...

    def fork(self) -> "Matcher":
        """Return a copy for checking draft tokens. Advancing it does not affect this matcher.

        The copy raises where this matcher would give up, because a draft must end no output.
        """
        ...


class Constraint(Protocol):
    """A compiled grammar. Immutable, and shared by requests with the same grammar."""

    def matcher(self) -> Matcher:
        """Return a matcher at the start of an output."""
        ...


class OutputConstraint(Constraint, Protocol):
    """The constraint of one request. It fails if following it costs too much.

    Attributes:
        failure: The reason, once it has failed and ended its output.
    """

    failure: str | None

    def is_fulfilled(self, token_ids: Sequence[int]) -> bool:
        """Return True if an output of these tokens, without its end token, is complete."""
        ...

    def after(self, text: str) -> "OutputConstraint":
        """Return the constraint of the rest of an output that begins with `text`.

        Raises:
            InvalidGrammar: No output of the grammar begins with it.
        """
        ...


class Grammars(Protocol):
    """Compiles grammars for one model's tokens. Safe to call from any thread."""

    def control_token_id(self, text: str) -> int | None:
        """Return the id of the control token with this text; None if there is none.

        A grammar can refer to control tokens only by id. They are the special tokens, and others
        that look like one, such as `<tool_call>`.
        """
        ...

    def compile(self, grammar: str) -> OutputConstraint:
        """Return a compiled grammar, from the cache if possible.

        Args:
            grammar: In llguidance's notation.

        Raises:
            InvalidGrammar: It is malformed, cannot be fulfilled or takes too much to compile.
        """
        ...

    def cached(self, grammar: str) -> OutputConstraint | None:
        """Return a grammar from the cache, without compiling it; None if it is not there.

        Raises:
            InvalidGrammar: It could not be compiled before.
        """
        ...
