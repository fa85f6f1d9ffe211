"""The tokenizer of a Hugging Face checkpoint, based on the tokenizers library.

transformers' `AutoTokenizer` reads the same files, but importing it takes 2 s in addition to torch.
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

# The files of other libraries' tokenizers, which transformers can convert.
_OLDER_FILES = ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")


class HfTokenizer:
    """A `Tokenizer` based on one of the tokenizers library.

    It is safe to use from any thread: after construction nothing changes the library's object.

    A conversation's control tokens come only from the chat template. Text in a message that looks
    like one, such as `<|im_end|>`, is marked before the template renders it and encoded as plain
    text. So a caller cannot end a message and begin one of another role. There are three limits.
    First, the marks (the private-use characters U+F0000 and U+F0001) are removed from
    conversations. Second, template code that compares or cuts a message's text finds the marks in
    it. Third, a token that the template assembles from parts of a message is not recognized. The
    usual part is the role, which is validated before.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        template: str | None,
        special_tokens: Mapping[str, str],
        tool_template: str | None = None,
    ) -> None:
        """Create the tokenizer. `backend` must not be used elsewhere after this.

        Its truncation and padding are switched off.

        Args:
            template: The chat template's source; None if the model has none.
            special_tokens: `bos_token` and similar tokens, by their names in templates.
            tool_template: The template for conversations with tools; None if `template` is used for
                them too.
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
        """The number of token ids, including added tokens."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def template(self) -> str | None:
        """The chat template's source. None if the model has none."""
        return self._template

    @property
    def tool_template(self) -> str | None:
        """The chat template's source for conversations with tools. None if there is none."""
        return self._tool_template

    @property
    def max_token_chars(self) -> int:
        """Maximum number of characters that one token stands for."""
        return self._max_token_chars

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return the text's token ids. The text of a control token becomes that token.

        If the text begins with the token that special tokens would add before it, the ids have that
        token only once.

        Raises:
            TemplateRejected: `text` is from `render_chat`, and a message contains the text of a
                control token that this tokenizer cannot encode as plain text.
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
        """Return the ids' text without cleanup. Ids outside the vocabulary have no text."""
        return self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of a token; see `service.domain.model.Tokenizer.token_bytes`."""
        return self._token_bytes(token_id)

    def special_token_id(self, text: str) -> int | None:
        """Return the id of the special token with this text, or None if there is none."""
        return self._special_token_ids.get(text)

    @property
    def added_token_ids(self) -> dict[str, int]:
        """The ids of all tokens that were added to the vocabulary, by their text."""
        added = self._backend.get_added_tokens_decoder().items()
        return {token.content: token_id for token_id, token in added}

    def to_json(self) -> str:
        """Return the tokenizer as the text of a tokenizer.json, including tokens added at load."""
        return self._backend.to_str()

    def render_chat(self, messages: list[dict[str, Any]], options: PromptOptions) -> str:
        """Render the conversation through the model's chat template, in jinja's sandbox.

        The result is to be encoded without special tokens. The role `developer` becomes `system` if
        the template does not mention it. A content becomes a list of one text part if the template
        only accepts lists.

        Args:
            messages: Dicts as templates expect them.

        Raises:
            TemplateRejected: The template raised any error, or the model has no template. There is
                no default format: it would give poor output without an explanation.
            UnsupportedField: `options.template_kwargs` contains a name that requests may not set.
        """
        template = self._tool_template if options.tools else self._template
        if template is None:
            raise TemplateRejected("the model has no chat template")
        reserved = jinja_template.RESERVED_VARIABLES | self._special_tokens.keys()
        for name in sorted(reserved & options.template_kwargs.keys()):
            raise UnsupportedField(
                "prompt.chat_template_kwargs_json",
                f"A request may not set the template argument {name}.",
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
        except Exception as error:  # templates are programs and can raise anything
            raise TemplateRejected(str(error) or type(error).__name__) from error


def load_tokenizer(path: Path) -> HfTokenizer:
    """Load the tokenizer of the checkpoint in the directory `path`.

    tokenizer.json determines how text is split. The class of transformers that the checkpoint names
    is ignored: some classes build a different tokenizer from the vocabulary.

    Raises:
        ModelLoadError: There is no tokenizer.json, or a file cannot be used.
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
    except Exception as error:  # the library raises no narrower type
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelLoadError(f"No tokenizer can be loaded from {path}: {reason}") from error


def _without_tokenizer_json(path: Path) -> str:
    """Return the error message if there is no tokenizer.json, with advice for older files."""
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
    """Return tokenizer_config.json, merged with the second file that old checkpoints have."""
    config = read_json_object(path / "tokenizer_config.json")
    if "added_tokens_decoder" in config:
        return config
    return config | read_json_object(path / "special_tokens_map.json")


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """Return `bos_token` and similar tokens by name. In the file each is a text or an object."""
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
    """Add the tokens that are in the configuration but not in tokenizer.json."""
    by_id = sorted(config.get("added_tokens_decoder", {}).items(), key=lambda item: int(item[0]))
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    if isinstance(extra, dict):  # named tokens, which `special_tokens` has
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
    """Return the chat templates by name: "default", and others if there are several.

    Depending on its version, transformers writes them to separate files, to the tokenizer's
    configuration, or to the configuration of a multimodal model's processor.
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
    """Return chat templates by name. A template without a name is the default."""
    if isinstance(template, list):
        return {entry["name"]: entry["template"] for entry in template}
    if isinstance(template, dict):
        return dict(template)
    return {} if template is None else {"default": template}


def _takes_parts(template: str, special_tokens: Mapping[str, str]) -> bool:
    """Return True if the template shows a message's text only if its content is a list of parts.

    Some templates of multimodal models omit a content that is a text, without an error.
    """
    messages: list[dict[str, Any]] = [{"role": "user", "content": "probe of a content"}]

    def shows(messages: list[dict[str, Any]]) -> bool:
        with suppress(Exception):  # templates are programs and can raise anything
            text = jinja_template.render(
                template, messages, dict(special_tokens), add_generation_prompt=False
            )
            return "probe of a content" in text
        return False

    return not shows(messages) and shows(_with_parts(messages))


def _with_parts(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages with each content as a list of one text part."""
    return [
        message | {"content": [{"type": "text", "text": message["content"]}]}
        for message in messages
    ]


def _beginning(backend: tokenizers.Tokenizer) -> int | None:
    """Return the token that special tokens add before a text, or None if there is none."""
    with_special_tokens = encode(backend, "a", add_special_tokens=True)
    if with_special_tokens[:1] == encode(backend, "a")[:1]:
        return None
    return with_special_tokens[0]
