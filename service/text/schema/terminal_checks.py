"""Checks with the grammar compiler what a terminal matches."""

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from service.text.schema.json_values import quoted

_END = 256
_LIMITS = LLParserLimits(initial_lexer_fuel=500_000, step_lexer_fuel=100_000, verbose_errors=False)
_EMPTY = "NoExtension"  # llguidance's error message has it if nothing can match


class TerminalTooComplex(Exception):
    """A terminal costs too much to compile."""


class _Bytes:
    """A tokenizer for llguidance in which each byte is a token."""

    eos_token_id = _END
    bos_token_id = None
    tokens = (*(bytes([i]) for i in range(_END)), b"<end>")
    special_token_ids = (_END,)

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


_TOKENIZER = LLTokenizer(TokenizerWrapper(_Bytes()), n_vocab=_END + 1, slices=[])


class TerminalChecker:
    """Checks terminals, and remembers the results."""

    def __init__(self) -> None:
        self._is_empty: dict[str, bool] = {}
        self._matchers: dict[str, LLMatcher] = {}

    def is_empty(self, terminal: str) -> bool:
        """Return True if the terminal certainly matches nothing."""
        if " & " not in terminal:  # without an intersection, every part matches something
            return not terminal
        if terminal not in self._is_empty:
            matcher = _matcher(terminal)
            matcher.compute_bitmask()
            self._is_empty[terminal] = _EMPTY in matcher.get_error()
        return self._is_empty[terminal]

    def matches(self, terminal: str, text: str) -> bool:
        """Return True if the terminal matches a string, which is given without its quotes.

        Raises:
            TerminalTooComplex: The terminal costs too much to compile or to match.
        """
        if terminal not in self._matchers:
            self._matchers[terminal] = _matcher(terminal)
        matcher = self._matchers[terminal].deep_copy()
        tokens = list(quoted(text).encode())
        is_match = matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()
        if matcher.is_error() and _EMPTY not in matcher.get_error():
            raise TerminalTooComplex
        return is_match


def _matcher(terminal: str) -> LLMatcher:
    return LLMatcher(_TOKENIZER, f"start: T\nT: {terminal}", log_level=0, limits=_LIMITS)
