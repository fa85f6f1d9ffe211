"""Grammars that answers must follow: compiled once, their masks computed within bounds."""

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

MAX_GRAMMAR_LENGTH = 524_288  # characters, of one grammar composed of all its parts
MAX_CACHED_BYTES = 268_435_456  # what all cached grammars may come to take
_MAX_REASON_LENGTH = 300

_Compiled: TypeAlias = "Future[LLMatcher | str]"  # or why there is none


@dataclass(slots=True)
class _Entry:
    """A grammar in the cache, and what it may come to take."""

    compiled: _Compiled
    num_bytes: int


# The lexer of a grammar keeps a state for all that it has told apart, of all answers so far.
# Counted repetition takes about five for each character that is counted. A state takes 300 to 460
# bytes.
_MIN_STATES = 20_000
_MAX_STATES = 250_000
_STATES_PER_COUNT = 6
_STATE_BYTES = 500
# The rules and terminals themselves: 12 to 45 bytes were measured for a character of their text.
_CHARACTER_BYTES = 50
_COUNT = re.compile(r"\{(?:\d*,)?(\d+)\}")


def load_token_trie(
    tokenizer_json: str, vocab_size: int, eos_token_ids: Iterable[int]
) -> LLTokenizer:
    """llguidance's view of a tokenizer, of the tokenizers library's JSON.

    It takes 0.5 s for 49 152 tokens and holds the GIL all that time, so it is for a start alone.
    "Slices", which make the first masks inside of strings faster, would take four times as long.

    Raises:
        ValueError: llguidance does not know this kind of tokenizer.
    """
    return LLTokenizer(
        tokenizer_json, n_vocab=vocab_size, eos_token=sorted(eos_token_ids), slices=[]
    )


class CompiledGrammars:
    """The grammars of one model: each compiled when it is first asked for, the last ones kept.

    A failure is kept too: who sends the same hostile grammar again and again gets it refused at
    once. Callers that ask for the same at the same time share one compilation.
    """

    def __init__(self, tokenizer: LLTokenizer, added_token_ids: Mapping[str, int]) -> None:
        """`added_token_ids`: the tokens that may be control tokens, by their text."""
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
        """The id of the token that a grammar can name by it alone; None where `text` is text."""
        return self._control_token_ids.get(text)

    def compile(self, grammar: str) -> "GrammarConstraint":
        """The grammar, in llguidance's notation. It takes a while: not for an event loop.

        Raises:
            InvalidGrammar: it is malformed, cannot be fulfilled or takes too much to compile.
        """
        if len(grammar) > MAX_GRAMMAR_LENGTH:
            raise InvalidGrammar(f"it has more than {MAX_GRAMMAR_LENGTH} characters in all")
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
        """Return the grammar if it has been compiled, without any wait. None: it has not been.

        Raises:
            InvalidGrammar: it could not be compiled.
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
        return GrammarConstraint(compiled, self._end, self._tokenizer, forget)

    def _entry(self, grammar: str) -> tuple[_Entry, bool]:
        """The grammar's entry in the cache, and whether it is new, for the caller to fill."""
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
        """Compile the grammar again when it is asked for next.

        Its lexer is shared by all answers. One that has come to its limits fails for each of them.
        """
        with self._lock:
            entry = self._cache.pop(grammar, None)
            if entry is not None:
                self._cached_bytes -= entry.num_bytes

    def _compile(self, grammar: str) -> LLMatcher | str:
        """A matcher at the start, which is copied for each answer and never moved itself."""
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=_limits(grammar))
        if matcher.is_error():
            return _reason(matcher.get_error())
        first = matcher.deep_copy()
        if not any(first.compute_bitmask()) and not first.is_error():
            return "no answer fulfils it"
        # Many a grammar that costs too much does so behind its first bracket.
        first.consume_tokens(first.compute_ff_tokens())
        if not first.is_error() and not first.is_stopped():
            first.compute_bitmask()
        return _reason(first.get_error()) if first.is_error() else matcher


@dataclass(frozen=True, slots=True)
class _End:
    """The tokens that end an answer, and the mask that allows them alone."""

    token_ids: frozenset[int]
    mask: bytes


class GrammarConstraint:
    """A compiled grammar for one request. `failure` says why an answer to it could not go on."""

    def __init__(
        self, start: LLMatcher, end: _End, tokenizer: LLTokenizer, forget: Callable[[], None]
    ) -> None:
        """`forget` drops the compiled grammar from its cache."""
        self.failure: str | None = None
        self._start = start
        self._end = end
        self._tokenizer = tokenizer
        self._forget = forget

    def fail(self, reason: str) -> None:
        """Note why an answer could not go on."""
        if self.failure is None:
            self.failure = reason
            self._forget()

    def matcher(self) -> "GrammarMatcher":
        """A matcher at the start of an answer."""
        return GrammarMatcher(self._start.deep_copy(), self._end, self)

    def is_fulfilled(self, token_ids: Sequence[int]) -> bool:
        """Whether an answer of these tokens, without its end, is whole."""
        matcher = self._start.deep_copy()
        return bool(matcher.consume_tokens(list(token_ids)) and matcher.is_accepting())

    def after(self, text: str) -> "GrammarConstraint":
        """Return the constraint of what follows `text`, with which the answer begins.

        Raises:
            InvalidGrammar: no answer begins so.
        """
        matcher = self._start.deep_copy()
        if not matcher.consume_tokens(self._tokenizer.tokenize_bytes(text.encode())):
            raise InvalidGrammar("no answer begins with this text")
        return GrammarConstraint(matcher, self._end, self._tokenizer, self._forget)


class GrammarMatcher:
    """A `Matcher`; where a grammar's cost passes its limits, it ends the answer.

    It never raises, except where it looks ahead: a step computes other requests too. Instead the
    constraint's `failure` is set, and the tokens that end an answer are the only ones allowed from
    then on.
    """

    def __init__(self, matcher: LLMatcher, end: _End, constraint: GrammarConstraint | None) -> None:
        """`constraint`: where a failure is noted; None: nowhere, it is raised."""
        self._matcher = matcher
        self._end = end
        self._constraint = constraint
        self._num_after_end = 0  # tokens taken in since the answer ended, its end included

    def allowed_tokens(self) -> bytes:
        """A bit for each token id that may come next; see `service.domain.grammar.Matcher`."""
        if not self._num_after_end and not self._is_failed():
            mask: bytes = self._matcher.compute_bitmask()
            if not self._is_failed() and any(mask):
                return mask
            self._fail("no token can follow")
        return self._end.mask

    def forced_tokens(self) -> tuple[int, ...]:
        """What must come next, as far as there is no choice; it may be nothing."""
        if self._num_after_end or self._is_failed():
            return ()
        return tuple(self._matcher.compute_ff_tokens())

    def advance(self, token_id: int) -> None:
        """Take in a token that `allowed_tokens` allows."""
        if self._num_after_end or token_id in self._end.token_ids:
            if not self._num_after_end and not self._matcher.is_accepting():
                self._fail("the answer ended before the grammar was fulfilled")
            self._num_after_end += 1
        elif not self._matcher.consume_token(token_id):
            self._is_failed()

    def fork(self) -> "GrammarMatcher":
        """A matcher at the same place, to look ahead with; see `service.domain.grammar.Matcher`."""
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
    """What one grammar may cost.

    Measured with these on one core, for 49 152 tokens and the worst grammars that were found: 0.2 s
    to compile, without the GIL, and 22 ms for one mask. Common schemas take 2 to 70 ms to compile,
    and 0.1 ms for most masks.
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
    """The number of states that the lexer of a grammar may have."""
    counted = sum(min(int(count), _MAX_STATES) for count in _COUNT.findall(grammar))
    return min(_MIN_STATES + _STATES_PER_COUNT * counted, _MAX_STATES)


def _most_bytes(grammar: str) -> int:
    """What a compiled grammar may come to take, at most."""
    return _CHARACTER_BYTES * len(grammar) + _STATE_BYTES * _most_states(grammar)


def _reason(error: str) -> str:
    """Say in our words what llguidance found; in its words only what is about the text itself."""
    text = error.split("\n", 1)[0].strip()
    if any(sign in text for sign in _TOO_COSTLY):
        return "it takes more than is allowed to compile or to follow"
    if "NoExtension" in text:
        return "no answer fulfils it"
    if "regex parse error" in text:
        *_, cause = error.partition("\nerror: ")
        return f"an expression is invalid: {cause.splitlines()[0] if cause else 'it is malformed'}"
    text = re.sub(r"^at (\d+)\((\d+)\): ", r"line \1, column \2: ", text)
    return text[:_MAX_REASON_LENGTH].rstrip(".:")


# How llguidance's errors about its limits read.
_TOO_COSTLY = (
    "too many", "Too many", "too big", "fuel", "limit", "max is", "precomputation failed",
    "too large", "nested too deep",
)  # fmt: skip
