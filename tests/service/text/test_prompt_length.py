from service.text.prompt_length import least_num_tokens
from tests.fakes.tokenizer import ByteTokenizer


class CountingTokenizer(ByteTokenizer):
    """A `ByteTokenizer` that counts the characters that it encodes."""

    def __init__(self) -> None:
        super().__init__()
        self.num_chars = 0

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        self.num_chars += len(text)
        return super().encode(text, add_special_tokens=add_special_tokens)


def test_far_too_long_text_is_detected_by_its_beginning() -> None:
    tokenizer = CountingTokenizer()
    assert least_num_tokens(tokenizer, "x" * 1_000_000, 100) == 800
    assert tokenizer.num_chars == 800


def test_text_that_may_fit_is_not_tokenized() -> None:
    tokenizer = CountingTokenizer()
    assert least_num_tokens(tokenizer, "x" * 800, 100) == 0
    assert tokenizer.num_chars == 0


def test_text_of_long_tokens_is_not_reported_as_too_long() -> None:
    class LongTokens(ByteTokenizer):
        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            return [1] * (len(text) // 50)

    assert least_num_tokens(LongTokens(), "x" * 4000, 100) == 0
