import threading
import time

import pytest

from service.domain.grammar import Matcher
from service.errors import InvalidGrammar
from service.text import grammars as grammars_module
from service.text.grammars import CompiledGrammars, load_token_trie
from tests.fakes.grammars import COSTLY_LATER, allowed, byte_grammars
from tests.fakes.tokenizer import EOS
from tests.support.library_tokenizers import metaspace


@pytest.fixture(scope="module")
def grammars() -> CompiledGrammars:
    return byte_grammars()


def take(matcher: Matcher, text: bytes) -> None:
    for byte in text:
        assert byte in allowed(matcher)
        matcher.advance(byte)


def test_matcher_returns_allowed_and_forced_tokens(grammars: CompiledGrammars) -> None:
    matcher = grammars.compile('start: "yes" | "no"').matcher()
    assert allowed(matcher) == [ord("n"), ord("y")]
    assert matcher.forced_tokens() == ()
    take(matcher, b"y")
    assert bytes(matcher.forced_tokens()) == b"es"
    take(matcher, b"es")
    assert allowed(matcher) == [EOS]


def test_end_is_allowed_only_where_the_grammar_is_satisfied(
    grammars: CompiledGrammars,
) -> None:
    matcher = grammars.compile("start: /a+/").matcher()
    assert allowed(matcher) == [ord("a")]
    take(matcher, b"a")
    assert allowed(matcher) == [ord("a"), EOS]


@pytest.mark.parametrize("num_taken", [0, 1, 2, 3])
def test_advancing_a_fork_does_not_affect_the_matcher(
    grammars: CompiledGrammars, num_taken: int
) -> None:
    matcher = grammars.compile('start: "ab"').matcher()
    tokens = (*b"ab", EOS, EOS)
    for token_id in tokens[:num_taken]:
        matcher.advance(token_id)
    before = matcher.allowed_tokens(), matcher.forced_tokens()
    fork = matcher.fork()
    assert (fork.allowed_tokens(), fork.forced_tokens()) == before
    for token_id in tokens[num_taken:]:
        fork.advance(token_id)
    assert allowed(fork) == [EOS]
    assert (matcher.allowed_tokens(), matcher.forced_tokens()) == before


def test_too_costly_fork_raises_without_affecting_the_matcher(grammars: CompiledGrammars) -> None:
    constraint = grammars.compile(COSTLY_LATER)
    matcher = constraint.matcher()
    fork = matcher.fork()
    with pytest.raises(InvalidGrammar, match="costs more than is allowed"):
        for _ in range(10):
            fork.advance(allowed(fork)[0])
    assert constraint.failure is None
    assert allowed(matcher) != [EOS]


def test_matchers_of_one_constraint_are_independent(grammars: CompiledGrammars) -> None:
    constraint = grammars.compile('start: "ab"')
    first, second = constraint.matcher(), constraint.matcher()
    take(first, b"a")
    assert allowed(second) == [ord("a")]
    assert allowed(first) == [ord("b")]


def test_same_grammar_is_compiled_once_by_concurrent_callers() -> None:
    grammars = byte_grammars()
    compiled = []
    real = grammars._compile
    entered = threading.Barrier(2)

    def slow(grammar: str) -> object:
        compiled.append(grammar)
        entered.wait()
        return real(grammar)

    grammars._compile = slow  # type: ignore[method-assign, assignment]
    first = threading.Thread(target=grammars.compile, args=('start: "x"',))
    first.start()
    second = threading.Thread(target=grammars.compile, args=('start: "x"',))
    second.start()
    entered.wait()
    first.join()
    second.join()
    grammars.compile('start: "x"')
    assert compiled == ['start: "x"']


def test_oldest_grammar_is_evicted_when_memory_is_exceeded(monkeypatch: pytest.MonkeyPatch) -> None:
    most = grammars_module._most_bytes('start: "a"')
    monkeypatch.setattr(grammars_module, "MAX_CACHED_BYTES", 2 * most)
    grammars = byte_grammars()
    for text in ("a", "b", "a", "c"):
        grammars.compile(f'start: "{text}"')
    assert list(grammars._cache) == ['start: "a"', 'start: "c"']
    grammars.compile("start: /a{0,5000}/")
    assert list(grammars._cache) == ["start: /a{0,5000}/"]
    assert grammars._cached_bytes == grammars._cache["start: /a{0,5000}/"].num_bytes


def test_failure_counts_only_its_text_as_memory() -> None:
    grammars = byte_grammars()
    for _ in range(2):
        with pytest.raises(InvalidGrammar):
            grammars.compile("start: nowhere")
    assert grammars._cached_bytes == len("start: nowhere")


def test_cached_grammar_is_returned_without_compiling(grammars: CompiledGrammars) -> None:
    assert grammars.cached('start: "cached"') is None
    grammars.compile('start: "cached"')
    constraint = grammars.cached('start: "cached"')
    assert constraint is not None
    assert constraint.is_fulfilled(b"cached")
    with pytest.raises(InvalidGrammar):
        grammars.compile("start: nobody")
    with pytest.raises(InvalidGrammar):
        grammars.cached("start: nobody")


def test_constraint_after_a_text_continues_from_it(grammars: CompiledGrammars) -> None:
    constraint = grammars.compile('start: "yes" | "no"')
    after = constraint.after("ye")
    assert allowed(after.matcher()) == [ord("s")]
    assert after.is_fulfilled(b"s")
    assert constraint.is_fulfilled(b"yes")
    for text in ("x", "yes!"):
        with pytest.raises(InvalidGrammar, match="no output can begin"):
            constraint.after(text)


def test_exhausted_lexer_is_compiled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """All outputs share the lexer. If it were not compiled again, no later output could go on."""
    monkeypatch.setattr(grammars_module, "_MIN_STATES", 500)
    monkeypatch.setattr(grammars_module, "_STATES_PER_COUNT", 0)
    grammars = byte_grammars()
    grammar = "start: /[a-z]{0,5000}/"
    for _ in range(2):
        constraint = grammars.compile(grammar)
        matcher = constraint.matcher()
        for _ in range(100):
            matcher.advance(ord("a"))
            assert allowed(matcher) != [EOS]
        while constraint.failure is None:
            matcher.advance(ord("a"))
            matcher.allowed_tokens()
        assert grammars.cached(grammar) is None


@pytest.mark.parametrize(
    "grammar",
    [
        "",
        "start: nowhere",
        'start: "a',
        "start: /(/",
        "start: /(?=a)b/",
        "start: %json {",
        "start: " + "(" * 5000 + '"y"' + ")" * 5000,
        "begin: /a/",
        "start: /a/ & /b/",
    ],
)
def test_malformed_grammar_is_rejected_with_the_reason(
    grammars: CompiledGrammars, grammar: str
) -> None:
    for _ in range(2):  # the second time, it is in the cache
        with pytest.raises(InvalidGrammar) as caught:
            grammars.compile(grammar)
        assert 0 < len(str(caught.value)) < 400


# Grammars that would take much time or memory without limits.
HOSTILE = {
    "an expression of a million states": "start: /(((a{1,50}){1,50}){1,50}){1,50}/",
    "one that has to remember": "start: /(.*a.{200}|.*b.{200}|.*c.{199})/",
    "one that backtracks elsewhere": "start: /(x+x+)+y/",
    "alternatives without end": "start: " + " | ".join(['"x"'] * 4000),
    "options without end": "start: " + " ".join(['"x"?'] * 2000),
    "an ambiguous grammar": 'start: s\ns: s s s | s s | "x" |',
    "a grammar that recurses in its middle": 'start: /a/ start "x"',
    "classes of Unicode": r"start: /\p{L}{1,5000}[\p{N}]{3,4000}/",
}


@pytest.mark.parametrize("grammar", HOSTILE.values(), ids=HOSTILE)
def test_hostile_grammar_is_rejected_or_followed_within_limits(
    grammars: CompiledGrammars, grammar: str
) -> None:
    started = time.process_time()
    try:
        constraint = grammars.compile(grammar)
    except InvalidGrammar:
        return
    matcher = constraint.matcher()
    for _ in range(20):
        choices = allowed(matcher)
        assert choices
        matcher.advance(choices[-1])
    assert time.process_time() - started < 20  # in seconds; with the limits it is at most 0.2


def test_grammar_too_costly_during_output_ends_it_with_a_failure(
    grammars: CompiledGrammars,
) -> None:
    constraint = grammars.compile(COSTLY_LATER)
    matcher = constraint.matcher()
    for _ in range(10):
        matcher.advance(allowed(matcher)[0])
    assert constraint.failure is not None
    assert "costs more than is allowed" in constraint.failure
    assert allowed(matcher) == [EOS]
    matcher.advance(EOS)
    assert allowed(matcher) == [EOS]
    assert matcher.forced_tokens() == ()


def test_token_that_is_not_allowed_sets_the_failure(grammars: CompiledGrammars) -> None:
    constraint = grammars.compile('start: "yes"')
    constraint.matcher().advance(EOS)
    assert constraint.failure == "the output ended before the grammar was satisfied"
    constraint = grammars.compile('start: "yes"')
    constraint.matcher().advance(ord("x"))
    assert constraint.failure is not None


def test_complete_output_fulfils_the_constraint(grammars: CompiledGrammars) -> None:
    constraint = grammars.compile("start: /(ab)+/")
    fulfilled = [
        text for text in (b"", b"a", b"ab", b"aba", b"abab", b"x") if constraint.is_fulfilled(text)
    ]
    assert fulfilled == [b"ab", b"abab"]


def test_unsupported_tokenizer_raises_value_error() -> None:
    backend = metaspace()
    with pytest.raises(ValueError, match="decoder"):
        load_token_trie(backend.to_str(), backend.get_vocab_size(), [1])
