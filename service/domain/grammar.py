"""Grammars that constrain generated tokens."""

from collections.abc import Sequence
from typing import Protocol


class Matcher(Protocol):
    """The state of one output in its grammar.

    Different threads may use it, but only one at a time. It should release the interpreter's lock
    while it computes, because the model computes its next step meanwhile. An exception ends only
    the request of this output.
    """

    def allowed_tokens(self) -> bytes:
        """Return one bit for each token id: 1 if the token may come next.

        The lowest bit of byte 0 is that of id 0. If the grammar is fulfilled, the tokens that end
        the output are allowed. After such a token no token is allowed. If no token is allowed, the
        output ends.
        """
        ...

    def forced_tokens(self) -> tuple[int, ...]:
        """Return the tokens that must come next; empty if the grammar leaves a choice.

        They are used as a draft: `allowed_tokens` rejects wrong ones, so that they change no
        output.
        """
        ...

    def advance(self, token_id: int) -> None:
        """Append a token that `allowed_tokens` allows."""
        ...

    def fork(self) -> "Matcher":
        """Return a copy for checking draft tokens. Advancing it does not affect this matcher.

        If following the grammar costs too much, this matcher ends the output, but the copy raises
        an exception: a draft must not end an output.
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
        grammar: The grammar in llguidance's notation, for engines that compile it themselves.
        begun: The text that the prompt already has of the output; see `after`.
        failure: The reason why the constraint has failed and ended its output; None before that.
    """

    grammar: str
    begun: str
    failure: str | None

    def is_fulfilled(self, token_ids: Sequence[int]) -> bool:
        """Return True if an output of these tokens, without its end token, is complete."""
        ...

    def after(self, text: str) -> "OutputConstraint":
        """Return the constraint of the rest of an output that begins with `text`.

        Raises:
            InvalidGrammar: No output of the grammar begins with `text`.
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
        """Return the compiled grammar, from the cache if it is there.

        Args:
            grammar: In llguidance's notation.

        Raises:
            InvalidGrammar: It is malformed, cannot be fulfilled or takes too much to compile.
        """
        ...

    def cached(self, grammar: str) -> OutputConstraint | None:
        """Return a grammar from the cache, without compiling it; None if it is not there.

        Raises:
            InvalidGrammar: The cache has the failure of an earlier compilation.
        """
        ...
