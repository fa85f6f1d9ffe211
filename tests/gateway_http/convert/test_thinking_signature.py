"""The signatures of reasoning."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_http.convert.thinking_signature import (
    InvalidSignature,
    SignedTexts,
    signature,
    signature_with_text,
)


@given(st.text())
def test_signed_text_is_the_text(text: str) -> None:
    assert SignedTexts().text(text, signature(text)) == text


@given(st.text())
def test_signature_contains_a_text_that_is_not_returned(text: str) -> None:
    assert SignedTexts().text("", signature_with_text(text)) == text


@given(st.text(), st.text())
def test_signature_of_another_text_is_rejected(text: str, other: str) -> None:
    if text != other:
        with pytest.raises(InvalidSignature):
            SignedTexts().text(other, signature(text))


@pytest.mark.parametrize("sent", ["", "EqQBCgIYAhIM1gbcDa9GJwZA2b3h", "chatrpc"])
def test_signature_of_another_server_is_not_checked(sent: str) -> None:
    assert SignedTexts().text("Hmm.", sent) == "Hmm."


@pytest.mark.parametrize(
    "sent",
    [
        "chatrpc-text:",
        "chatrpc-text:!",
        "chatrpc-text:QUJD",
        signature_with_text("Hmm.")[:-4],
        signature_with_text("a" * (5 << 20)),  # longer than any context
    ],
)
def test_damaged_signature_is_rejected(sent: str) -> None:
    with pytest.raises(InvalidSignature):
        SignedTexts().text("", sent)


def test_contained_texts_of_a_request_have_a_size_together() -> None:
    texts, sent = SignedTexts(), signature_with_text("x" * (1 << 20))
    assert sum(len(texts.text("", sent)) for _ in range(4)) == 4 << 20
    with pytest.raises(InvalidSignature):
        texts.text("", sent)
    assert texts.text("", signature_with_text("")) == ""
