"""Control tokens, which the text of a conversation must not be able to produce."""

import re
from collections.abc import Callable
from typing import Any

import tokenizers

# The private-use characters that mark a control token in a message's text, as in transformers.
_START, _END = "\U000f0000", "\U000f0001"


class ControlTokens:
    """The special tokens, and the added tokens that the template contains, such as `<tool_call>`.

    White space is not a control token: some vocabularies have it as added tokens, and every
    template writes it. Control tokens in text from callers are marked before a template renders the
    text. In the rendered prompt, the template's own tokens are encoded as tokens, and the marked
    ones as plain text.
    """

    def __init__(self, backend: tokenizers.Tokenizer, template: str) -> None:
        self._backend = backend
        tokens = {
            token.content
            for token in backend.get_added_tokens_decoder().values()
            if token.special or (token.content in template and not token.content.isspace())
        }
        longest_first = sorted(tokens, key=len, reverse=True)
        token = "|".join(map(re.escape, longest_first)) or "(?!)"  # matches nothing
        self._tokens = re.compile(token)
        # Template code can split a marked token and leave a single mark.
        self._marked = re.compile(f"{_START}({token}){_END}|[{_START}{_END}]")

    def mark(self, value: Any) -> Any:
        """Return a JSON value with the control tokens in its texts marked. Keys are not changed."""
        if isinstance(value, str):
            text = value.replace(_START, "").replace(_END, "")  # drop marks from callers
            return self._tokens.sub(rf"{_START}\g<0>{_END}", text)
        if isinstance(value, dict):
            return {key: self.mark(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.mark(item) for item in value]
        return value

    def are_marked_in(self, text: str) -> bool:
        return _START in text or _END in text

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a rendered prompt that contains marks.

        Raises:
            ValueError: The tokenizer cannot encode a marked token as plain text.
        """
        first, *rest = self._marked.split(text)
        ids = encode(self._backend, first)
        for index, piece in enumerate(rest):
            if not piece:  # a single mark, or no text between two tokens
                continue
            if index % 2:
                ids += self._encode_after(piece, self._as_written)
            else:
                ids += self._encode_marked(piece)
        return ids

    def _encode_marked(self, token: str) -> list[int]:
        ids = self._encode_after(token, self._as_text)
        if self._backend.token_to_id(token) in ids:
            raise ValueError(f"the text {token!r} cannot be distinguished from the control token")
        return ids

    def _encode_after(self, piece: str, encode_piece: Callable[[str], list[int]]) -> list[int]:
        """Return the ids of a piece after other text, where SentencePiece adds no space."""
        newline = self._as_written("\n")
        ids = encode_piece(f"\n{piece}")
        if ids[: len(newline)] == newline:
            return ids[len(newline) :]
        return encode_piece(piece)

    def _as_written(self, text: str) -> list[int]:
        return encode(self._backend, text)

    def _as_text(self, text: str) -> list[int]:
        """Return the ids of a text through all of the library's stages except added tokens."""
        backend = self._backend
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        pieces = [text]
        if backend.pre_tokenizer is not None:
            pieces = [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
        return [token.id for piece in pieces for token in backend.model.tokenize(piece)]


def encode(
    backend: tokenizers.Tokenizer, text: str, *, add_special_tokens: bool = False
) -> list[int]:
    """Return the token ids of a text. Parts that are the text of an added token become that token.

    The library's plain `encode` keeps the GIL for 1 s per megabyte, which blocks every stream. The
    batch form releases it.
    """
    [encoding] = backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
    return encoding.ids
