"""Whether a text can fit the model's context, found out without tokenizing all of it."""

from service.domain.model import Tokenizer

# A text of more characters is looked at in parts. Few texts have so many characters a token.
_CHARS_PER_TOKEN = 8
# Tokens at the end of a part may come out differently in the whole text.
_SLACK = 64


def least_num_tokens(tokenizer: Tokenizer, text: str, max_num_tokens: int) -> int:
    """A number of tokens that `text` has at the least; 0 if it is not known to exceed the maximum.

    Tokenizing 1 MiB takes a second. Most texts that are far too long show it in their first part:
    the tokens of a beginning are tokens of the whole, but for the last few.
    """
    num_chars = _CHARS_PER_TOKEN * max_num_tokens
    if len(text) <= num_chars:
        return 0
    token_ids = tokenizer.encode(text[:num_chars], add_special_tokens=False)
    return len(token_ids) if len(token_ids) > max_num_tokens + _SLACK else 0
