"""Grammars that constrain output: compiled once and cached, with limits on the cost of masks."""

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from service.errors import InvalidGrammar

MAX_GRAMMAR_LENGTH = 524_288  # characters of one grammar with all its parts
MAX_CACHED_BYTES = 268_435_456  # maximum memory of all cached grammars
_MAX_REASON_LENGTH = 300

_Compiled: TypeAlias = "Future[LLMatcher | str]"  # str: why it cannot be compiled


@dataclass(slots=True)
class _Entry:
    """A grammar in the cache, and the maximum memory in bytes that it may need."""

    compiled: _Compiled
    num_bytes: int


# The lexer of a grammar keeps all states that any output has reached. Counted repetition needs
# about five states for each counted character. A state takes 300 to 460 bytes.
_MIN_STATES = 20_000
_MAX_STATES = 250_000
_STATES_PER_COUNT = 6
_STATE_BYTES = 500
# Memory in bytes for each character of the rules and terminals. 12 to 45 bytes were measured.
_CHARACTER_BYTES = 50
_COUNT = re.compile(r"\{(?:\d*,)?(\d+)\}")


def load_token_trie(
    tokenizer_json: str, vocab_size: int, eos_token_ids: Iterable[int]
) -> LLTokenizer:
    """Return llguidance's form of a tokenizer, given as the JSON of the tokenizers library.

    This takes 0.5 s for 49 152 tokens and holds the GIL for that time, so call it only at start.
    "Slices", which make the first masks inside strings faster, would take four times as long.

    Raises:
        ValueError: llguidance does not support this kind of tokenizer.
    """
    return LLTokenizer(
        tokenizer_json, n_vocab=vocab_size, eos_token=sorted(eos_token_ids), slices=[]
    )


class CompiledGrammars:
    """A cache of one model's grammars. Each is compiled at its first use.

    Failures are cached too, so the same hostile grammar is rejected at once the next time.
    Concurrent callers with the same grammar share one compilation.
    """

    def __init__(self, tokenizer: LLTokenizer, added_token_ids: Mapping[str, int]) -> None:
        """Create the cache.

        Args:
            added_token_ids: The tokens that can be control tokens, by their text.
        """
        self._tokenizer = tokenizer
        self._control_token_ids = {
            text: token_id
            for text, token_id in added_token_ids.items()
            if tokenizer.is_special_token(token_id)
        }
        token_ids = frozenset(tokenizer.eos_tokens)
        self._end = _End(token_ids, _bits(token_ids, tokenizer.vocab_size))
        self._lock = threading.Lock()
        self._cache: OrderedDict[str, _Entry] = OrderedDict()
        self._cached_bytes = 0

    def control_token_id(self, text: str) -> int | None:
        """Return the id of the control token with this text, or None if there is none.

        A grammar refers to control tokens by id.
        """
        return self._control_token_ids.get(text)

    def compile(self, grammar: str) -> "GrammarConstraint":
        """Return the compiled grammar. Do not call it on an event loop, because it takes long.

        Args:
            grammar: The grammar, in llguidance's notation.

        Raises:
            InvalidGrammar: The grammar is malformed, matches nothing or costs too much to compile.
        """
        if len(grammar) > MAX_GRAMMAR_LENGTH:
            raise InvalidGrammar(f"it has more than {MAX_GRAMMAR_LENGTH} characters in total")
        entry, is_new = self._entry(grammar)
        if is_new:
            try:
                entry.compiled.set_result(self._compile(grammar))
            except BaseException as error:
                entry.compiled.set_exception(error)
                raise
        compiled = entry.compiled.result()
        if isinstance(compiled, str):
            self._resize(grammar, entry, len(grammar))
        return self._constraint(grammar, compiled)

    def cached(self, grammar: str) -> "GrammarConstraint | None":
        """Return the grammar if it is already compiled, without waiting; None otherwise.

        Raises:
            InvalidGrammar: The grammar could not be compiled.
        """
        with self._lock:
            entry = self._cache.get(grammar)
            if entry is None or not entry.compiled.done() or entry.compiled.exception():
                return None
            self._cache.move_to_end(grammar)
        return self._constraint(grammar, entry.compiled.result())

    def _constraint(self, grammar: str, compiled: LLMatcher | str) -> "GrammarConstraint":
        if isinstance(compiled, str):
            raise InvalidGrammar(compiled)
        forget = partial(self._forget, grammar)
        return GrammarConstraint(grammar, compiled, self._end, self._tokenizer, forget)

    def _entry(self, grammar: str) -> tuple[_Entry, bool]:
        """Return the grammar's cache entry, and True if it is new and the caller has to fill it."""
        with self._lock:
            if grammar in self._cache:
                self._cache.move_to_end(grammar)
                return self._cache[grammar], False
            entry = self._cache[grammar] = _Entry(Future(), _most_bytes(grammar))
            self._cached_bytes += entry.num_bytes
            while len(self._cache) > 1 and self._cached_bytes > MAX_CACHED_BYTES:
                _, oldest = self._cache.popitem(last=False)
                self._cached_bytes -= oldest.num_bytes
            return entry, True

    def _resize(self, grammar: str, entry: _Entry, num_bytes: int) -> None:
        with self._lock:
            if self._cache.get(grammar) is entry:
                self._cached_bytes += num_bytes - entry.num_bytes
                entry.num_bytes = num_bytes

    def _forget(self, grammar: str) -> None:
        """Remove the grammar from the cache, so that it is compiled again at its next use.

        All outputs share a grammar's lexer. Once it has reached its limits, it fails for all of
        them.
        """
        with self._lock:
            entry = self._cache.pop(grammar, None)
            if entry is not None:
                self._cached_bytes -= entry.num_bytes

    def _compile(self, grammar: str) -> LLMatcher | str:
        """Return a matcher at the start, to be copied for each output; or the error message."""
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=_limits(grammar))
        if matcher.is_error():
            return _reason(matcher.get_error())
        first = matcher.deep_copy()
        if not any(first.compute_bitmask()) and not first.is_error():
            return "no output can match it"
        # Many grammars exceed the limits only after their first bracket.
        first.consume_tokens(first.compute_ff_tokens())
        if not first.is_error() and not first.is_stopped():
            first.compute_bitmask()
        return _reason(first.get_error()) if first.is_error() else matcher


@dataclass(frozen=True, slots=True)
class _End:
    """The tokens that end an output, and the mask that allows only them."""

    token_ids: frozenset[int]
    mask: bytes


class GrammarConstraint:
    """A compiled grammar for one request; see `service.domain.grammar.OutputConstraint`."""

    def __init__(
        self,
        grammar: str,
        start: LLMatcher,
        end: _End,
        tokenizer: LLTokenizer,
        forget: Callable[[], None],
        *,
        begun: str = "",
    ) -> None:
        """Create the constraint. `forget` removes the grammar from its cache."""
        self.grammar = grammar
        self.begun = begun
        self.failure: str | None = None
        self._start = start
        self._end = end
        self._tokenizer = tokenizer
        self._forget = forget

    def fail(self, reason: str) -> None:
        """Record the reason why an output could not continue."""
        if self.failure is None:
            self.failure = reason
            self._forget()

    def matcher(self) -> "GrammarMatcher":
        """Return a matcher at the start of an output."""
        return GrammarMatcher(self._start.deep_copy(), self._end, self)

    def is_fulfilled(self, token_ids: Sequence[int]) -> bool:
        """Return True if an output of these tokens, without its end, is complete."""
        matcher = self._start.deep_copy()
        return bool(matcher.consume_tokens(list(token_ids)) and matcher.is_accepting())

    def after(self, text: str) -> "GrammarConstraint":
        """Return the constraint for what follows `text`, with which the output begins.

        Raises:
            InvalidGrammar: No output can begin with `text`.
        """
        matcher = self._start.deep_copy()
        if not matcher.consume_tokens(self._tokenizer.tokenize_bytes(text.encode())):
            raise InvalidGrammar("no output can begin with this text")
        return GrammarConstraint(
            self.grammar,
            matcher,
            self._end,
            self._tokenizer,
            self._forget,
            begun=self.begun + text,
        )


class GrammarMatcher:
    """A `Matcher` that ends the output if the grammar's cost exceeds its limits.

    It never raises, except as a copy for draft tokens, because a step also computes other requests.
    Instead, it sets the constraint's `failure`, and then allows only the tokens that end an output.
    """

    def __init__(self, matcher: LLMatcher, end: _End, constraint: GrammarConstraint | None) -> None:
        """Create the matcher.

        Args:
            constraint: Its `failure` is set if the matcher fails. None for a copy, which raises an
                exception instead.
        """
        self._matcher = matcher
        self._end = end
        self._constraint = constraint
        self._num_after_end = 0  # tokens since the output ended, including its end

    def allowed_tokens(self) -> bytes:
        """Return one bit for each token id; see `service.domain.grammar.Matcher`."""
        if not self._num_after_end and not self._is_failed():
            mask: bytes = self._matcher.compute_bitmask()
            if not self._is_failed() and any(mask):
                return mask
            self._fail("no token can follow")
        return self._end.mask

    def forced_tokens(self) -> tuple[int, ...]:
        """Return the tokens that must come next; empty if the grammar leaves a choice."""
        if self._num_after_end or self._is_failed():
            return ()
        return tuple(self._matcher.compute_ff_tokens())

    def advance(self, token_id: int) -> None:
        """Add a token that `allowed_tokens` allows."""
        if self._num_after_end or token_id in self._end.token_ids:
            if not self._num_after_end and not self._matcher.is_accepting():
                self._fail("the output ended before the grammar was satisfied")
            self._num_after_end += 1
        elif not self._matcher.consume_token(token_id):
            self._is_failed()

    def fork(self) -> "GrammarMatcher":
        """Return a copy for checking draft tokens. Advancing it does not affect this matcher."""
        matcher = GrammarMatcher(self._matcher.deep_copy(), self._end, None)
        matcher._num_after_end = self._num_after_end
        return matcher

    def _is_failed(self) -> bool:
        if self._matcher.is_error():
            self._fail(_reason(self._matcher.get_error()))
            return True
        return False

    def _fail(self, reason: str) -> None:
        if self._constraint is None:
            raise InvalidGrammar(reason)
        self._constraint.fail(reason)


def _bits(token_ids: Iterable[int], vocab_size: int) -> bytes:
    mask = bytearray(-(-vocab_size // 8))
    for token_id in token_ids:
        mask[token_id // 8] |= 1 << token_id % 8
    return bytes(mask)


def _limits(grammar: str) -> LLParserLimits:
    """Return the limits on the cost of one grammar.

    With these limits, the worst grammars that were found took 0.2 s to compile, without the GIL,
    and 22 ms for one mask, on one core and with 49 152 tokens. Common schemas take 2 to 70 ms to
    compile, and 0.1 ms for most masks.
    """
    return LLParserLimits(
        max_items_in_row=2_000,
        initial_lexer_fuel=500_000,
        step_lexer_fuel=500_000,
        step_max_items=20_000,
        max_lexer_states=_most_states(grammar),
        max_grammar_size=100_000,
        verbose_errors=False,
    )


def _most_states(grammar: str) -> int:
    """Return the maximum number of states that the lexer of a grammar may have."""
    counted = sum(min(int(count), _MAX_STATES) for count in _COUNT.findall(grammar))
    return min(_MIN_STATES + _STATES_PER_COUNT * counted, _MAX_STATES)


def _most_bytes(grammar: str) -> int:
    """Return the maximum memory in bytes that a compiled grammar may need."""
    return _CHARACTER_BYTES * len(grammar) + _STATE_BYTES * _most_states(grammar)


def _reason(error: str) -> str:
    """Return an error message for the client: ours for exceeded limits, else llguidance's."""
    text = error.split("\n", 1)[0].strip()
    if any(sign in text for sign in _TOO_COSTLY):
        return "it costs more than is allowed to compile or to follow"
    if "NoExtension" in text:
        return "no output can match it"
    if "regex parse error" in text:
        *_, cause = error.partition("\nerror: ")
        return f"a regex is invalid: {cause.splitlines()[0] if cause else 'it is malformed'}"
    text = re.sub(r"^at (\d+)\((\d+)\): ", r"line \1, column \2: ", text)
    return text[:_MAX_REASON_LENGTH].rstrip(".:")


# Parts of llguidance's error messages about its limits.
_TOO_COSTLY = (
    "too many", "Too many", "too big", "fuel", "limit", "max is", "precomputation failed",
    "too large", "nested too deep",
)  # fmt: skip
