"""A cheap check that a text is too long for the model's context."""

from service.domain.model import Tokenizer

# Number of characters of a text that are tokenized for each token of the maximum. Few texts have so
# many characters per token.
_CHARS_PER_TOKEN = 8
# The last tokens of such a beginning can be different in the whole text. So a text is known to be
# too long only if its beginning has more tokens than the maximum and this number together.
_SLACK = 64


def least_num_tokens(tokenizer: Tokenizer, text: str, max_num_tokens: int) -> int:
    """Return a lower bound of a text's number of tokens, or 0 if it may be within the maximum.

    Tokenizing 1 MiB takes a second. For most texts that are far too long, the beginning is enough:
    its tokens are tokens of the whole text, except for the last few.
    """
    num_chars = _CHARS_PER_TOKEN * max_num_tokens
    if len(text) <= num_chars:
        return 0
    token_ids = tokenizer.encode(text[:num_chars], add_special_tokens=False)
    return len(token_ids) if len(token_ids) > max_num_tokens + _SLACK else 0
