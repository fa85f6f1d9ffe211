"""Turns texts, pairs of texts and token ids into the inputs of a pooling model."""

from collections.abc import Sequence
from typing import Any

import tokenizers

from service.domain.pooling import Inputs, TextPair, Truncation
from service.errors import ContextLengthExceeded, InvalidField
from service.pooling.batch import TokenizedInput


class InputTokenizer:
    """Tokenizes the inputs of requests. It is safe to use from any thread.

    Args:
        json: The text of a tokenizer.json.
        vocab_size: Number of token ids of the model.
        max_tokens: Maximum number of tokens of an input, with its special tokens.
        lowercases: True if texts are made lower case.
        has_types: True if the tokens of pairs have `TokenizedInput.type_ids`.
    """

    def __init__(
        self,
        json: str,
        vocab_size: int,
        max_tokens: int,
        *,
        lowercases: bool = False,
        has_types: bool = True,
    ) -> None:
        self._tokenizer = tokenizers.Tokenizer.from_str(json)
        # Nothing changes the library's object later: its truncation is a part of its state.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._num_added = {
            is_pair: self._tokenizer.num_special_tokens_to_add(is_pair) for is_pair in (False, True)
        }
        self._vocab_size = vocab_size
        self._max_tokens = max_tokens
        self._lowercases = lowercases
        self._has_types = has_types

    def tokenized(
        self,
        inputs: Inputs,
        field: str,
        *,
        truncation: Truncation | None = None,
        add_special_tokens: bool = True,
        prompt: str = "",
        skips_prompt: bool = False,
        max_tokens_per_document: int | None = None,
    ) -> list[TokenizedInput]:
        """Return the inputs as token ids.

        Args:
            field: The field with the inputs, for errors.
            prompt: It is put before each text.
            skips_prompt: True if pooling leaves out the tokens of the prompt.
            max_tokens_per_document: Only this many tokens at the start of each text, or of the
                document of each pair, are used. Those of `prompt` do not count.

        Raises:
            ContextLengthExceeded: An input has too many tokens, and there is no `truncation`.
            InvalidField: A token id is not one of the model's.
        """
        first = inputs[0]
        if isinstance(first, TextPair):
            pairs = [each for each in inputs if isinstance(each, TextPair)]
            found = self._pairs(pairs, add_special_tokens, truncation, max_tokens_per_document)
        elif isinstance(first, str):
            texts = [prompt + each for each in inputs if isinstance(each, str)]
            num_skipped = self._prompt_length(prompt, add_special_tokens) if skips_prompt else 0
            most = max_tokens_per_document
            if most is not None:
                most += self._prompt_length(prompt, add_special_tokens=False)
            found = self._texts(texts, add_special_tokens, truncation, num_skipped, most)
        else:
            ids = [each for each in inputs if isinstance(each, tuple)]
            found = self._ids(ids, truncation, field)
        for index, each in enumerate(found):
            if len(each) > self._max_tokens:
                words = f"input {index}"
                raise ContextLengthExceeded(len(each), self._max_tokens, f"{field}[{index}]", words)
            if not len(each):
                raise InvalidField(f"{field}[{index}]", "The input has no token.")
        return found

    def _texts(
        self,
        texts: Sequence[str],
        add_special_tokens: bool,
        truncation: Truncation | None,
        num_skipped: int,
        max_tokens_per_text: int | None,
    ) -> list[TokenizedInput]:
        num_added = self._num_added[False] if add_special_tokens else 0
        most = self._most(truncation, num_added)
        found = []
        for encoding in self._encoded(texts):
            if max_tokens_per_text is not None and len(encoding) > max_tokens_per_text:
                encoding.truncate(max_tokens_per_text)
            if truncation is not None and len(encoding) > most:
                encoding.truncate(most, direction=truncation.side)
            found.append(self._finished(encoding, None, add_special_tokens, num_skipped))
        return found

    def _pairs(
        self,
        pairs: Sequence[TextPair],
        add_special_tokens: bool,
        truncation: Truncation | None,
        max_tokens_per_document: int | None,
    ) -> list[TokenizedInput]:
        num_added = self._num_added[True] if add_special_tokens else 0
        most = self._most(truncation, num_added)
        queries = self._encoded([pair.query for pair in pairs])
        documents = self._encoded([pair.document for pair in pairs])
        found = []
        for query, document in zip(queries, documents, strict=True):
            if max_tokens_per_document is not None and len(document) > max_tokens_per_document:
                document.truncate(max_tokens_per_document)
            if truncation is not None and len(query) + len(document) > most:
                lengths = _longest_first(len(query), len(document), most)
                query.truncate(lengths[0], direction=truncation.side)
                document.truncate(lengths[1], direction=truncation.side)
            found.append(self._finished(query, document, add_special_tokens, 0))
        return found

    def _ids(
        self, inputs: Sequence[tuple[int, ...]], truncation: Truncation | None, field: str
    ) -> list[TokenizedInput]:
        most = self._most(truncation, 0)
        found = []
        for index, ids in enumerate(inputs):
            if (largest := max(ids)) >= self._vocab_size:
                raise InvalidField(
                    f"{field}[{index}]",
                    f"The token id {largest} is not one of the model's {self._vocab_size} ids.",
                )
            if truncation is not None and len(ids) > most:
                ids = ids[-most:] if truncation.side == "left" else ids[:most]  # noqa: PLW2901
            found.append(TokenizedInput(ids))
        return found

    def _encoded(self, texts: Sequence[str]) -> list[Any]:
        """Return the encodings of texts, without special tokens."""
        if self._lowercases:
            texts = [text.lower() for text in texts]
        return self._tokenizer.encode_batch(list(texts), add_special_tokens=False)

    def _finished(
        self, encoding: Any, pair: Any, add_special_tokens: bool, num_skipped: int
    ) -> TokenizedInput:
        done = self._tokenizer.post_process(encoding, pair, add_special_tokens)
        type_ids = done.type_ids if pair is not None and self._has_types else ()
        return TokenizedInput(done.ids, type_ids, min(num_skipped, len(done) - 1))

    def _most(self, truncation: Truncation | None, num_added: int) -> int:
        """Return the maximum number of tokens of an input, without special tokens."""
        most = None if truncation is None else truncation.max_tokens
        most = self._max_tokens if most is None else min(most, self._max_tokens)
        return max(0, most - num_added)

    def _prompt_length(self, prompt: str, add_special_tokens: bool) -> int:
        """Return the number of tokens of a prompt, with the special tokens before it."""
        if not prompt:
            return 0
        [encoding] = self._encoded([prompt])
        done = self._tokenizer.post_process(encoding, None, add_special_tokens)
        mask = list(done.special_tokens_mask)
        while mask and mask[-1]:
            mask.pop()
        return len(mask)


def _longest_first(first: int, second: int, most: int) -> tuple[int, int]:
    """Return the lengths of two texts after the longer one has lost tokens, then both in turn.

    The two lengths together are at most `most`. The rule is `longest_first` of the library.
    """
    short, long = sorted((first, second))
    long = max(short, most - short) if short <= most else short
    if short + long > most:
        short = most // 2
        long = short + most % 2
    return (long, short) if first > second else (short, long)
