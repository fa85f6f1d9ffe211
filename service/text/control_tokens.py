"""What a conversation's text must not be able to write: the tokens that steer the model."""

import re
from collections.abc import Callable
from typing import Any

import tokenizers

# Two private-use characters around a control token in a message's text, as transformers has them.
_START, _END = "\U000f0000", "\U000f0001"


class ControlTokens:
    """The special tokens and such added tokens as the template writes, `<tool_call>` say.

    White space is none of them: some vocabularies hold it as added tokens and every template writes
    it. What a caller sends is marked before a template sees it. Of the rendered prompt the
    template's own tokens are then encoded as such, and the marked ones as the plain text they are.
    """

    def __init__(self, backend: tokenizers.Tokenizer, template: str) -> None:
        self._backend = backend
        tokens = {
            token.content
            for token in backend.get_added_tokens_decoder().values()
            if token.special or (token.content in template and not token.content.isspace())
        }
        longest_first = sorted(tokens, key=len, reverse=True)
        token = "|".join(map(re.escape, longest_first)) or "(?!)"  # which matches nothing
        self._tokens = re.compile(token)
        # Template code can cut a marked token in two and leave a lone mark.
        self._marked = re.compile(f"{_START}({token}){_END}|[{_START}{_END}]")

    def mark(self, value: Any) -> Any:
        """The value, JSON of any depth, its texts' control tokens marked. Keys are left alone."""
        if isinstance(value, str):
            text = value.replace(_START, "").replace(_END, "")  # nobody else's marks
            return self._tokens.sub(rf"{_START}\g<0>{_END}", text)
        if isinstance(value, dict):
            return {key: self.mark(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.mark(item) for item in value]
        return value

    def are_marked_in(self, text: str) -> bool:
        return _START in text or _END in text

    def encode(self, text: str) -> list[int]:
        """The ids of a rendered prompt with marks in it.

        Raises:
            ValueError: the tokenizer knows a marked token in no other way than as that token.
        """
        first, *rest = self._marked.split(text)
        ids = encode(self._backend, first)
        for place, piece in enumerate(rest):
            if not piece:  # a lone mark, or nothing between two
                continue
            if place % 2:
                ids += self._encode_after(piece, self._as_written)
            else:
                ids += self._encode_marked(piece)
        return ids

    def _encode_marked(self, token: str) -> list[int]:
        ids = self._encode_after(token, self._as_text)
        if self._backend.token_to_id(token) in ids:
            raise ValueError(f"{token!r} cannot be told from the control token")
        return ids

    def _encode_after(self, piece: str, encode_piece: Callable[[str], list[int]]) -> list[int]:
        """The piece as one that text comes before; SentencePiece puts a space at a beginning."""
        newline = self._as_written("\n")
        ids = encode_piece(f"\n{piece}")
        if ids[: len(newline)] == newline:
            return ids[len(newline) :]
        return encode_piece(piece)

    def _as_written(self, text: str) -> list[int]:
        return encode(self._backend, text)

    def _as_text(self, text: str) -> list[int]:
        """Through the library's stages one by one, but for the one that finds added tokens."""
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
    """The text's ids; a token written out in it is that token.

    The library's plain `encode` would hold the GIL, and with it every stream, to its end: 1 s for a
    megabyte. The batch form releases it.
    """
    [encoding] = backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
    return encoding.ids
