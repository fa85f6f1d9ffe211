"""Grammars that answers must follow: compiled once, their masks computed within bounds."""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeAlias

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from service.errors import InvalidGrammar

MAX_GRAMMAR_LENGTH = 262_144  # characters, of one grammar composed of all its parts
MAX_CACHED = 128
MAX_CACHED_LENGTH = 4_194_304  # characters, of all cached grammars' texts
_MAX_REASON_LENGTH = 300

_Compiled: TypeAlias = "Future[LLMatcher | str]"  # or why there is none

# What one grammar may cost. With these, on one core and for 49 152 tokens, the worst that hostile
# grammars were found to take is 2.1 s to compile, without the GIL, and 53 ms for one mask. Common
# schemas take 2 to 70 ms, and 0.1 ms for most masks, 1.8 ms for the longest.
_LIMITS = LLParserLimits(
    max_items_in_row=2_000,
    initial_lexer_fuel=500_000,
    step_lexer_fuel=100_000,
    step_max_items=20_000,
    max_lexer_states=20_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)


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
        self._cache: OrderedDict[str, _Compiled] = OrderedDict()
        self._cached_length = 0

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
        future, is_new = self._cached(grammar)
        if is_new:
            try:
                future.set_result(self._compile(grammar))
            except BaseException as error:
                future.set_exception(error)
                raise
        compiled = future.result()
        if isinstance(compiled, str):
            raise InvalidGrammar(compiled)
        return GrammarConstraint(compiled, self._end)

    def _cached(self, grammar: str) -> tuple[_Compiled, bool]:
        with self._lock:
            if grammar in self._cache:
                self._cache.move_to_end(grammar)
                return self._cache[grammar], False
            future: _Compiled = Future()
            self._cache[grammar] = future
            self._cached_length += len(grammar)
            while len(self._cache) > MAX_CACHED or self._cached_length > MAX_CACHED_LENGTH:
                oldest, _ = self._cache.popitem(last=False)
                self._cached_length -= len(oldest)
            return future, True

    def _compile(self, grammar: str) -> LLMatcher | str:
        """A matcher at the start, which is copied for each answer and never moved itself."""
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=_LIMITS)
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

    def __init__(self, start: LLMatcher, end: _End) -> None:
        self.failure: str | None = None
        self._start = start
        self._end = end

    def matcher(self) -> "GrammarMatcher":
        """A matcher at the start of an answer."""
        return GrammarMatcher(self._start.deep_copy(), self._end, self)

    def is_fulfilled(self, token_ids: Sequence[int]) -> bool:
        """Whether an answer of these tokens, without its end, is whole."""
        matcher = self._start.deep_copy()
        return bool(matcher.consume_tokens(list(token_ids)) and matcher.is_accepting())


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
        """A bit for each token id that may come next; see `service.types.Matcher`."""
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

    def ahead(self) -> "GrammarMatcher":
        """A matcher at the same place, to look ahead with; see `service.types.Matcher`."""
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
        self._constraint.failure = self._constraint.failure or reason


def _bits(token_ids: Iterable[int], vocab_size: int) -> bytes:
    mask = bytearray(-(-vocab_size // 8))
    for token_id in token_ids:
        mask[token_id // 8] |= 1 << token_id % 8
    return bytes(mask)


def _reason(error: str) -> str:
    """llguidance's words, without the parser's state and the grammar that it may add to them."""
    text = error.split("\n<", 1)[0].strip()
    return text if len(text) <= _MAX_REASON_LENGTH else f"{text[:_MAX_REASON_LENGTH]}..."
