"""Renders chat templates with jinja in its sandbox, as transformers does.

Importing transformers' own renderer would take 1.3 s at start.
"""

import functools
import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

# The names that a request cannot set: the variables of templates, and the parameters of
# transformers' `apply_chat_template`, which callers of other servers may expect to work.
RESERVED_VARIABLES = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "raise_exception", "strftime_now"}
    | {"self", "conversation", "chat_template", "continue_final_message", "kwargs"}
    | {"tokenize", "sanitize_control_tokens", "tokenizer_kwargs", "return_assistant_tokens_mask"}
    | {"padding", "truncation", "max_length", "return_tensors", "return_dict"}
)


def render(
    template: str,
    messages: list[dict[str, Any]],
    variables: dict[str, Any],
    *,
    tools: list[dict[str, Any]] | None = None,
    add_generation_prompt: bool,
) -> str:
    """Return the conversation rendered with `template`. All values must be of JSON's types.

    Raises:
        Exception: The template cannot be compiled, or its code raises an error of any type.
    """
    return _compiled(template).render(
        messages=[_with_thinking(message) for message in messages],
        tools=tools or None,
        documents=None,
        add_generation_prompt=add_generation_prompt,
        **variables,
    )


def reads_tools(template: str) -> bool:
    """Return True if the template uses its variable `tools`.

    Raises:
        jinja2.TemplateError: The template cannot be compiled.
    """
    names = _environment().parse(template).find_all(nodes.Name)
    return any(name.name == "tools" and name.ctx == "load" for name in names)


def _with_thinking(message: dict[str, Any]) -> dict[str, Any]:
    """Return the message with its reasoning also under the name that gpt-oss's template reads."""
    reasoning = message.get("reasoning_content")
    return message if reasoning is None else {"thinking": reasoning, **message}


@functools.cache  # a process has one template
def _compiled(template: str) -> jinja2.Template:
    return _environment().from_string(template)


def _environment() -> jinja2.Environment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(
        raise_exception=_raise_exception,
        strftime_now=_strftime_now,
        dict=_Dict(),
        namespace=_SafeNamespace,
    )
    return environment


class _Generation(jinja2.ext.Extension):
    """The tag `{% generation %}`, which marks the model's text for training.

    Rendering returns its body.
    """

    tags = {"generation"}  # noqa: RUF012  # jinja's name and type

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return a value as JSON without HTML escapes, which jinja's own filter adds."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)  # noqa: DTZ005  # local time, as transformers does


# A template is an untrusted program. Two built-ins would give it too much: the class `dict` has
# attributes, and jinja's namespaces can store names like `__class__`.


class _Dict:
    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


class _SafeNamespace(Namespace):
    def __init__(*args: Any, **kwargs: Any) -> None:  # a variable can be named self
        self, *pairs = args
        initial = dict(*pairs, **kwargs)
        for name in initial:
            _reject_private(name)
        Namespace.__init__(self, initial)

    def __setitem__(self, name: str, value: Any) -> None:
        _reject_private(name)
        super().__setitem__(name, value)


def _reject_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"A template may not store {name!r} on a namespace.")
