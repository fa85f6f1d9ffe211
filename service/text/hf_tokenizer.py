"""A Hugging Face checkpoint's tokenizer. The one module of `text` that imports transformers."""

import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import mark_control_tokens

from service.errors import ModelLoadError, TemplateRefused, UnsupportedField
from service.text.chat_template import with_known_roles
from service.types import PromptOptions

# The names that mean something to `apply_chat_template` itself, `chat_template` among them (a
# template is a program, and requests bring none), and those that it gives to templates.
_RESERVED_VARIABLES = frozenset(
    inspect.signature(PreTrainedTokenizerFast.apply_chat_template).parameters
) | {"messages", "raise_exception", "strftime_now"}
# What `mark_control_tokens` puts before a control token, U+F0000.
_MARK = mark_control_tokens("x", re.compile("x"))[0]


class HfTokenizer:
    """A `Tokenizer` over one of transformers' that the tokenizers library backs.

    Safe from any thread: after construction nothing changes the state of the library's tokenizer.

    A conversation's control tokens come from the chat template alone. What a message holds that
    looks like one, `<|im_end|>` say, is marked before the template sees it and encoded as the plain
    text it is, so no one can close a message and speak in another role. Three limits, transformers'
    own: the two private-use characters it marks with (U+F0000, U+F0001) are dropped from
    conversations; template code that compares or cuts a message's text sees the marks; and a token
    that the template would assemble from a message's pieces is not recognised, though roles, the
    usual piece, are checked at the edge.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Take the tokenizer over; its truncation and padding are switched off for good."""
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        # transformers changes these at the first call that finds them set, which another thread's
        # call in the middle of an encode does not survive.
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = tokenizer.split_special_tokens = False
        try:
            self._template: str | None = tokenizer.get_chat_template()
        except ValueError:  # no template, or several and none that is the default
            self._template = None
        self._max_token_chars = max(map(len, self._backend.get_vocab(with_added_tokens=True)))
        self._control_tokens = _control_tokens(tokenizer, self._template or "")

    @property
    def vocab_size(self) -> int:
        """The number of token ids, added tokens included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def max_token_chars(self) -> int:
        """No token stands for more characters of a text than this."""
        return self._max_token_chars

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The text's token ids. A control token written out in `text` is encoded as that token.

        Raises:
            TemplateRefused: `text` is from `render_chat`, and a message holds the text of a control
                token that this tokenizer knows in no other way than as that token.
        """
        if _MARK in text and not add_special_tokens:
            return self._encode_marked(text)
        # encode() would hold the GIL, and with it every stream, to its end: 1 s for a megabyte. The
        # batch form releases it.
        [encoding] = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return encoding.ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The ids' text, never tidied up. Ids outside the vocabulary have none."""
        return self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def render_chat(self, messages: list[dict[str, Any]], options: PromptOptions) -> str:
        """The conversation through the model's chat template, to be encoded without special tokens.

        `messages` are dicts as templates read them. A role `developer` becomes `system` where the
        template does not know it. The template runs in transformers' jinja sandbox.

        Raises:
            TemplateRefused: the template raised, whatever the error, or the model has none. A
                made-up format instead would get poor answers that nobody could explain.
            UnsupportedField: `options.template_kwargs` holds a name that a request may not set.
        """
        if self._template is None:
            raise TemplateRefused("the model has no chat template")
        reserved = _RESERVED_VARIABLES | self._tokenizer.special_tokens_map.keys()
        for name in sorted(reserved & options.template_kwargs.keys()):
            raise UnsupportedField(
                "prompt.chat_template_kwargs_json",
                f"The template argument {name} may not be set in a request.",
            )
        chat = with_known_roles(messages, self._template)
        try:
            rendered = self._tokenizer.apply_chat_template(
                mark_control_tokens(chat, self._control_tokens),
                chat_template=self._template,
                add_generation_prompt=options.add_generation_prompt,
                tokenize=False,
                **mark_control_tokens(options.template_kwargs, self._control_tokens),
            )
        except Exception as error:  # the template is a program that ran on the caller's data
            raise TemplateRefused(str(error) or type(error).__name__) from error
        return cast("str", rendered)  # with tokenize=False

    def _encode_marked(self, text: str) -> list[int]:
        try:
            encoding = self._tokenizer(text, add_special_tokens=False, sanitize_control_tokens=True)
        except ValueError as error:
            raise TemplateRefused(str(error)) from error
        return cast("list[int]", encoding["input_ids"])


def load_tokenizer(path: Path) -> HfTokenizer:
    """The tokenizer of the checkpoint in the directory `path`; nothing is fetched for it.

    Raises:
        ModelLoadError: there is no tokenizer.json, or one that cannot be used.
    """
    # Without this file transformers would try other formats, and some of its classes then start
    # with an empty vocabulary and say nothing.
    if not (path / "tokenizer.json").is_file():
        raise ModelLoadError(f"No tokenizer can be loaded from {path}: it has no tokenizer.json.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # from anywhere between the JSON and the library's own core
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelLoadError(f"No tokenizer can be loaded from {path}: {reason}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        kind = type(tokenizer).__name__
        raise ModelLoadError(f"The tokenizer in {path}, a {kind}, is of a kind not served.")
    return HfTokenizer(tokenizer)


def _control_tokens(tokenizer: PreTrainedTokenizerFast, template: str) -> re.Pattern[str]:
    """What matches a token that a message must not be able to write.

    These are the special tokens and such added tokens as the template writes, `<tool_call>` say,
    but for white space, which some vocabularies hold as added tokens and every template writes.
    """
    tokens = {
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.special or (token.content in template and not token.content.isspace())
    }
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
