"""A Hugging Face checkpoint's tokenizer: its files, over the tokenizers library.

transformers' `AutoTokenizer` reads the same files, but importing it costs a start 2 s beside torch.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import tokenizers

from service.domain.chat import PromptOptions
from service.errors import ModelLoadError, TemplateRejected, UnsupportedField
from service.json_file import read_json_object
from service.text import jinja_template
from service.text.chat_template import with_known_roles
from service.text.control_tokens import ControlTokens, encode
from service.text.token_bytes import TokenBytes

# Tokenizers of other libraries, which transformers converts.
_OLDER_FILES = ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")


class HfTokenizer:
    """A `Tokenizer` over one of the tokenizers library.

    Safe from any thread: after construction nothing changes the state of the library's tokenizer.

    A conversation's control tokens come from the chat template alone. What a message holds that
    looks like one, `<|im_end|>` say, is marked before the template sees it and encoded as the plain
    text it is, so no one can close a message and speak in another role. Three limits: the marks
    themselves (U+F0000, U+F0001, of private use) are dropped from conversations; template code that
    compares or cuts a message's text sees them; and a token that the template would assemble from a
    message's pieces is not recognised, though roles, the usual piece, are checked at the edge.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        template: str | None,
        special_tokens: Mapping[str, str],
        tool_template: str | None = None,
    ) -> None:
        """Take `backend` over; its truncation and padding are switched off for good.

        Args:
            template: the chat template's source; None where the model has none.
            special_tokens: `bos_token` and the like; templates see them by these names.
            tool_template: the template for conversations with tools; None: the same.
        """
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = False
        self._backend = backend
        self._template = template
        self._tool_template = tool_template or template
        self._special_tokens = dict(special_tokens)
        sources = {source for source in (template, tool_template) if source is not None}
        self._takes_parts = {
            source for source in sources if _takes_parts(source, self._special_tokens)
        }
        self._max_token_chars = max(map(len, backend.get_vocab(with_added_tokens=True)))
        self._special_token_ids = {
            token.content: token_id
            for token_id, token in backend.get_added_tokens_decoder().items()
            if token.special
        }
        self._control_tokens = ControlTokens(backend, "".join(sources))
        self._beginning = _beginning(backend)
        self._token_bytes = TokenBytes(backend)

    @property
    def vocab_size(self) -> int:
        """The number of token ids, added tokens included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def template(self) -> str | None:
        """The chat template's source; None where the model has none."""
        return self._template

    @property
    def tool_template(self) -> str | None:
        """The chat template's source for conversations with tools; None where there is none."""
        return self._tool_template

    @property
    def max_token_chars(self) -> int:
        """No token stands for more characters of a text than this."""
        return self._max_token_chars

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The text's token ids. A control token written out in `text` is encoded as that token.

        If the text itself begins with the token that special tokens would add before it, the ids
        have that token once.

        Raises:
            TemplateRejected: `text` is from `render_chat`, and a message contains the text of a
                control token that this tokenizer cannot encode in another way.
        """
        if add_special_tokens:
            ids = encode(self._backend, text, add_special_tokens=True)
            is_doubled = self._beginning is not None and ids[:2] == [self._beginning] * 2
            return ids[1:] if is_doubled else ids
        if not self._control_tokens.are_marked_in(text):
            return encode(self._backend, text)
        try:
            return self._control_tokens.encode(text)
        except ValueError as error:
            raise TemplateRejected(str(error)) from error

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The ids' text, never tidied up. Ids outside the vocabulary have none."""
        return self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        """See `service.domain.model.Tokenizer.token_bytes`."""
        return self._token_bytes(token_id)

    def special_token_id(self, text: str) -> int | None:
        """The id of the special token written so; None if there is none."""
        return self._special_token_ids.get(text)

    @property
    def added_token_ids(self) -> dict[str, int]:
        """The tokens beside the vocabulary of its model, special ones and others, by their text."""
        added = self._backend.get_added_tokens_decoder().items()
        return {token.content: token_id for token_id, token in added}

    def to_json(self) -> str:
        """The tokenizer as tokenizer.json would have it, tokens added at load included."""
        return self._backend.to_str()

    def render_chat(self, messages: list[dict[str, Any]], options: PromptOptions) -> str:
        """The conversation through the model's chat template, to be encoded without special tokens.

        `messages` are dicts as templates read them. A role `developer` becomes `system` where the
        template does not know it. A content becomes a list of one part of text where the template
        reads nothing else. The template runs in jinja's sandbox.

        Raises:
            TemplateRejected: the template raised, whatever the error, or the model has none. A
                made-up format instead would get poor answers that nobody could explain.
            UnsupportedField: `options.template_kwargs` holds a name that a request may not set.
        """
        template = self._tool_template if options.tools else self._template
        if template is None:
            raise TemplateRejected("the model has no chat template")
        reserved = jinja_template.RESERVED_VARIABLES | self._special_tokens.keys()
        for name in sorted(reserved & options.template_kwargs.keys()):
            raise UnsupportedField(
                "prompt.chat_template_kwargs_json",
                f"The template argument {name} may not be set in a request.",
            )
        mark = self._control_tokens.mark
        messages = with_known_roles(messages, template)
        if template in self._takes_parts:
            messages = _with_parts(messages)
        try:
            return jinja_template.render(
                template,
                mark(messages),
                self._special_tokens | mark(options.template_kwargs),
                tools=mark(options.tools),
                add_generation_prompt=options.add_generation_prompt,
            )
        except Exception as error:  # the template is a program that ran on the caller's data
            raise TemplateRejected(str(error) or type(error).__name__) from error


def load_tokenizer(path: Path) -> HfTokenizer:
    """The tokenizer of the checkpoint in the directory `path`.

    tokenizer.json has the last word on how text is split, whatever class of transformers the
    checkpoint names: some of those build another tokenizer from its vocabulary.

    Raises:
        ModelLoadError: there is no tokenizer.json, or a file that cannot be used.
    """
    if not (path / "tokenizer.json").is_file():
        raise ModelLoadError(_without_tokenizer_json(path))
    try:
        backend = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
        config = _config(path)
        special_tokens = _special_tokens(config)
        _add_missing_tokens(backend, config, special_tokens)
        templates = _templates(path, config)
        return HfTokenizer(
            backend, templates.get("default"), special_tokens, templates.get("tool_use")
        )
    except Exception as error:  # the library raises nothing narrower, nor does odd JSON
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelLoadError(f"No tokenizer can be loaded from {path}: {reason}") from error


def _without_tokenizer_json(path: Path) -> str:
    """What to do about a checkpoint whose tokenizer is in older files."""
    message = f"No tokenizer can be loaded from {path}: it has no tokenizer.json"
    older = [name for name in _OLDER_FILES if (path / name).is_file()]
    if not older:
        return f"{message}."
    return (
        f"{message}, only {older[0]}. Convert it with `pip install transformers sentencepiece "
        'tiktoken` and `python -c "from transformers import AutoTokenizer as T; '
        f'T.from_pretrained({str(path)!r}).save_pretrained({str(path)!r})"`.'
    )


def _config(path: Path) -> dict[str, Any]:
    """tokenizer_config.json, or what old checkpoints spread over two files."""
    config = read_json_object(path / "tokenizer_config.json")
    if "added_tokens_decoder" in config:
        return config
    return config | read_json_object(path / "special_tokens_map.json")


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """`bos_token` and its like, which are texts or objects around one, by name."""
    extra = config.get("extra_special_tokens")
    named = config | (extra if isinstance(extra, dict) else {})
    texts = {
        name: value["content"] if isinstance(value, dict) else value
        for name, value in named.items()
        if name.endswith("_token")
    }
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _add_missing_tokens(
    backend: tokenizers.Tokenizer, config: dict[str, Any], special_tokens: Mapping[str, str]
) -> None:
    """Add what the configuration calls a token and tokenizer.json does not."""
    by_id = sorted(config.get("added_tokens_decoder", {}).items(), key=lambda item: int(item[0]))
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    if isinstance(extra, dict):  # they have names
        extra = []
    tokens = [tokenizers.AddedToken(**token) for _, token in by_id]
    tokens += [_special_token(token) for token in [*special_tokens.values(), *extra]]
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    backend.add_tokens([token for token in tokens if token.content not in known])


def _special_token(token: str | dict[str, Any]) -> tokenizers.AddedToken:
    fields = {"content": token} if isinstance(token, str) else token
    fields = {name: value for name, value in fields.items() if name != "__type"}
    return tokenizers.AddedToken(**(fields | {"special": True}))


def _templates(path: Path, config: dict[str, Any]) -> dict[str, str]:
    """The chat templates by name: "default", and others where there are several.

    They are read from where transformers keeps or kept them: a file of its own, with others beside
    it in a folder; the tokenizer's configuration; that of the processor of a multimodal model.
    """
    found = _named(config.get("chat_template"))
    if not found:
        for name in ("chat_template.json", "processor_config.json"):
            found = found or _named(read_json_object(path / name).get("chat_template"))
    file = path / "chat_template.jinja"
    if file.is_file():
        found["default"] = file.read_text()
    for other in (path / "additional_chat_templates").glob("*.jinja"):
        found[other.stem] = other.read_text()
    return found


def _named(template: str | list[dict[str, str]] | dict[str, str] | None) -> dict[str, str]:
    """Chat templates by name: one without a name is the default."""
    if isinstance(template, list):
        return {entry["name"]: entry["template"] for entry in template}
    if isinstance(template, dict):
        return dict(template)
    return {} if template is None else {"default": template}


def _takes_parts(template: str, special_tokens: Mapping[str, str]) -> bool:
    """Whether a template shows a message's text only where its content is a list of parts.

    Templates of some multimodal models do. A content that is a text is left out without an error.
    """
    messages: list[dict[str, Any]] = [{"role": "user", "content": "probe of a content"}]

    def shows(messages: list[dict[str, Any]]) -> bool:
        with suppress(Exception):  # a template is a program, and may refuse anything
            text = jinja_template.render(
                template, messages, dict(special_tokens), add_generation_prompt=False
            )
            return "probe of a content" in text
        return False

    return not shows(messages) and shows(_with_parts(messages))


def _with_parts(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages, each content that is a text as a list of one part."""
    return [
        message | {"content": [{"type": "text", "text": message["content"]}]}
        for message in messages
    ]


def _beginning(backend: tokenizers.Tokenizer) -> int | None:
    """The token that special tokens put before a text; None if they put none there."""
    with_special_tokens = encode(backend, "a", add_special_tokens=True)
    if with_special_tokens[:1] == encode(backend, "a")[:1]:
        return None
    return with_special_tokens[0]
