"""Conversion of tokens to text, with the detokenizer, stop strings and the engine's end."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.backend import TextDelta
from service.domain.engine import FinishReason, TokenLogprobs, TokenOutput
from service.domain.sampling import SamplingParams
from service.text.output_text import OutputText
from tests.fakes.tokenizer import EOS, ByteTokenizer


def answer(*stop: str, stop_token_ids: frozenset[int] = frozenset()) -> OutputText:
    return OutputText(ByteTokenizer(), SamplingParams(stop=stop, stop_token_ids=stop_token_ids))


def push(text: OutputText, output: TokenOutput) -> TextDelta:
    """Push an output. Return the delta without its token ids."""
    return replace(text.push(output), token_ids=())


def output(text: str, finish_reason: FinishReason | None = None) -> TokenOutput:
    return TokenOutput(tuple(text.encode()), finish_reason)


def test_first_engine_output_gives_an_empty_delta() -> None:
    assert push(answer(), TokenOutput()) == TextDelta()


def test_possible_stop_string_is_held_back() -> None:
    text = answer("END")
    assert push(text, output("one E")) == TextDelta("one ", 5)
    assert push(text, output("N")) == TextDelta("", 1)
    assert push(text, output("t", FinishReason.LENGTH)) == TextDelta("ENt", 1, FinishReason.LENGTH)


def test_stop_string_ends_the_output_at_its_own_token() -> None:
    delta = push(answer("END"), output("one END two", FinishReason.LENGTH))
    assert delta == TextDelta("one ", 7, FinishReason.STOP, "END")


def test_stop_string_in_the_last_token_precedes_the_limit() -> None:
    delta = push(answer("!"), output("a!", FinishReason.LENGTH))
    assert delta == TextDelta("a", 2, FinishReason.STOP, "!")


def test_end_token_is_counted_and_has_no_text() -> None:
    delta = push(answer(), TokenOutput((ord("a"), EOS), FinishReason.STOP))
    assert delta == TextDelta("a", 2, FinishReason.STOP)


def test_stop_token_is_reported() -> None:
    text = answer(stop_token_ids=frozenset({ord("!")}))
    assert push(text, output("a!", FinishReason.STOP)) == TextDelta(
        "a", 2, FinishReason.STOP, ord("!")
    )


def test_character_cut_by_the_limit_is_dropped() -> None:
    text = answer()
    assert push(text, TokenOutput((ord("a"), 0xF0, 0x9F))) == TextDelta("a", 3)
    assert push(text, TokenOutput((0x8E,), FinishReason.LENGTH)) == TextDelta(
        "", 1, FinishReason.LENGTH
    )


def test_unfinished_character_of_the_model_is_shown() -> None:
    delta = push(answer(), TokenOutput((0xF0, EOS), FinishReason.STOP))
    assert delta == TextDelta("�", 2, FinishReason.STOP)


def test_stop_string_completed_by_the_flush_ends_the_output() -> None:
    text = answer("�")
    delta = push(text, TokenOutput((ord("a"), 0xF0, EOS), FinishReason.STOP))
    assert delta == TextDelta("a", 3, FinishReason.STOP, "�")


@given(
    st.text(max_size=30),
    st.lists(st.integers(1, 5), min_size=1),
    st.sampled_from([(), ("ab",), ("a", "b c")]),
)
def test_output_does_not_depend_on_how_the_engine_splits_it(
    said: str, cuts: list[int], stop: tuple[str, ...]
) -> None:
    token_ids = said.encode()
    pieces, start = [], 0
    for size in cuts:
        pieces.append(token_ids[start : start + size])
        start += size
    pieces.append(token_ids[start:])
    text = answer(*stop)
    deltas = []
    for i, piece in enumerate(pieces):
        reason = FinishReason.LENGTH if i == len(pieces) - 1 else None
        deltas.append(text.push(TokenOutput(tuple(piece), reason)))
        if deltas[-1].finish_reason is not None:
            break
    cut = min((said.find(s) for s in stop if s in said), default=len(said))
    assert "".join(d.text for d in deltas) == said[:cut]
    assert (deltas[-1].finish_reason is FinishReason.STOP) == (cut < len(said))


@pytest.mark.parametrize("text", ["🎉", "東京", "👩‍👩‍👧", "né"])
def test_delta_never_contains_half_a_character(text: str) -> None:
    answering = answer()
    deltas = [answering.push(TokenOutput((byte,))) for byte in text.encode()]
    assert "".join(d.text for d in deltas) == text
    assert not any("�" in d.text for d in deltas)


def test_delta_has_its_token_ids_including_the_last() -> None:
    text = answer()
    assert text.push(output("ab")).token_ids == tuple(b"ab")
    last = text.push(TokenOutput((ord("c"), EOS), FinishReason.STOP))
    assert last.token_ids == (ord("c"), EOS)


def test_tokens_after_a_stop_string_are_dropped() -> None:
    delta = answer("END").push(output("one END two", FinishReason.LENGTH))
    assert delta.token_ids == tuple(b"one END")


def test_stop_string_can_be_included_in_the_text() -> None:
    text = OutputText(
        ByteTokenizer(), SamplingParams(stop=("END",), include_stop_str_in_output=True)
    )
    assert push(text, output("one END two")) == TextDelta("one END", 7, FinishReason.STOP, "END")


def test_special_tokens_can_be_included_in_the_text() -> None:
    sampling = SamplingParams(skip_special_tokens=False, include_stop_str_in_output=True)
    text = OutputText(ByteTokenizer(), sampling)
    delta = push(text, TokenOutput((ord("a"), EOS), FinishReason.STOP))
    assert delta == TextDelta("a<eos>", 2, FinishReason.STOP)


def with_logprobs(token_ids: bytes | list[int], reason: FinishReason | None = None) -> TokenOutput:
    return TokenOutput(
        tuple(token_ids), reason, logprobs=tuple(TokenLogprobs(i, -1.0) for i in token_ids)
    )


def tokens_with_logprobs(delta: TextDelta) -> bytes:
    """Return the tokens whose log probabilities are in the delta."""
    return b"".join(logprob.token for logprob in delta.logprobs)


def test_log_probabilities_are_sent_with_their_text() -> None:
    text = answer("END")
    assert tokens_with_logprobs(text.push(with_logprobs(b"one E"))) == b"one "
    assert tokens_with_logprobs(text.push(with_logprobs(b"N"))) == b""
    assert tokens_with_logprobs(text.push(with_logprobs(b"t", FinishReason.LENGTH))) == b"ENt"


def test_stop_string_is_removed_with_its_log_probabilities() -> None:
    assert tokens_with_logprobs(answer("END").push(with_logprobs(b"one END two"))) == b"one "


def test_end_token_has_no_log_probability() -> None:
    assert (
        tokens_with_logprobs(answer().push(with_logprobs([ord("a"), EOS], FinishReason.STOP)))
        == b"a"
    )


def test_tokens_of_one_character_are_sent_together() -> None:
    text = answer()
    first, *middle, last = "🎉".encode()
    assert tokens_with_logprobs(text.push(with_logprobs([ord("a"), first, *middle]))) == b"a"
    assert tokens_with_logprobs(text.push(with_logprobs([last]))) == "🎉".encode()


def test_token_cut_by_the_limit_keeps_its_log_probability() -> None:
    assert (
        tokens_with_logprobs(answer().push(with_logprobs([ord("a"), 0xF0], FinishReason.LENGTH)))
        == b"a\xf0"
    )


def test_end_without_a_token_removes_no_text() -> None:
    answer = OutputText(ByteTokenizer(), SamplingParams(stop_token_ids=frozenset({98})))
    assert answer.push(TokenOutput((97, 98))).text == "ab"
    end = answer.push(TokenOutput((), FinishReason.STOP))
    assert (end.text, end.finish_reason, end.matched_stop) == ("", FinishReason.STOP, None)
