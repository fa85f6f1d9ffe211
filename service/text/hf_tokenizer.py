"""A Hugging Face checkpoint's tokenizer: its files, over the tokenizers library.

transformers' `AutoTokenizer` reads the same files, but importing it costs a start 2 s beside torch.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from service.errors import ModelLoadError, TemplateRefused, UnsupportedField
from service.text import jinja_template
from service.text.chat_template import with_known_roles
from service.text.control_tokens import ControlTokens, encode
from service.text.token_bytes import TokenBytes
from service.types import PromptOptions


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
    ) -> None:
        """Take `backend` over; its truncation and padding are switched off for good.

        Templates see `special_tokens` by name: `bos_token` and the like.
        """
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = False
        self._backend = backend
        self._template = template
        self._special_tokens = dict(special_tokens)
        self._max_token_chars = max(map(len, backend.get_vocab(with_added_tokens=True)))
        self._special_token_ids = {
            token.content: token_id
            for token_id, token in backend.get_added_tokens_decoder().items()
            if token.special
        }
        self._control_tokens = ControlTokens(backend, template or "")
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
    def max_token_chars(self) -> int:
        """No token stands for more characters of a text than this."""
        return self._max_token_chars

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The text's token ids. A control token written out in `text` is encoded as that token.

        Raises:
            TemplateRefused: `text` is from `render_chat`, and a message holds the text of a control
                token that this tokenizer knows in no other way than as that token.
        """
        if add_special_tokens or not self._control_tokens.are_marked_in(text):
            return encode(self._backend, text, add_special_tokens=add_special_tokens)
        try:
            return self._control_tokens.encode(text)
        except ValueError as error:
            raise TemplateRefused(str(error)) from error

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The ids' text, never tidied up. Ids outside the vocabulary have none."""
        return self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        """See `service.types.Tokenizer.token_bytes`."""
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
        template does not know it. The template runs in jinja's sandbox.

        Raises:
            TemplateRefused: the template raised, whatever the error, or the model has none. A
                made-up format instead would get poor answers that nobody could explain.
            UnsupportedField: `options.template_kwargs` holds a name that a request may not set.
        """
        if self._template is None:
            raise TemplateRefused("the model has no chat template")
        reserved = jinja_template.RESERVED_VARIABLES | self._special_tokens.keys()
        for name in sorted(reserved & options.template_kwargs.keys()):
            raise UnsupportedField(
                "prompt.chat_template_kwargs_json",
                f"The template argument {name} may not be set in a request.",
            )
        mark = self._control_tokens.mark
        try:
            return jinja_template.render(
                self._template,
                mark(with_known_roles(messages, self._template)),
                self._special_tokens | mark(options.template_kwargs),
                tools=mark(options.tools),
                add_generation_prompt=options.add_generation_prompt,
            )
        except Exception as error:  # the template is a program that ran on the caller's data
            raise TemplateRefused(str(error) or type(error).__name__) from error


def load_tokenizer(path: Path) -> HfTokenizer:
    """The tokenizer of the checkpoint in the directory `path`.

    tokenizer.json has the last word on how text is split, whatever class of transformers the
    checkpoint names: some of those build another tokenizer from its vocabulary.

    Raises:
        ModelLoadError: there is no tokenizer.json, or a file that cannot be used.
    """
    if not (path / "tokenizer.json").is_file():
        raise ModelLoadError(f"No tokenizer can be loaded from {path}: it has no tokenizer.json.")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
        config = _config(path)
        special_tokens = _special_tokens(config)
        _add_missing_tokens(backend, config, special_tokens)
        return HfTokenizer(backend, _template(path, config), special_tokens)
    except Exception as error:  # the library raises nothing narrower, nor does odd JSON
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelLoadError(f"No tokenizer can be loaded from {path}: {reason}") from error


def _config(path: Path) -> dict[str, Any]:
    """tokenizer_config.json, or what old checkpoints spread over two files."""
    config = _read_json(path / "tokenizer_config.json")
    if "added_tokens_decoder" in config:
        return config
    return config | _read_json(path / "special_tokens_map.json")


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_bytes()) if path.is_file() else {}
    return content


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


def _template(path: Path, config: dict[str, Any]) -> str | None:
    """The default chat template; None where there is none, not even among several."""
    file = path / "chat_template.jinja"
    if file.is_file():
        return file.read_text()
    template: str | list[dict[str, str]] | None = config.get("chat_template")
    if isinstance(template, list):
        by_name = {entry["name"]: entry["template"] for entry in template}
        return by_name.get("default")
    return template
