"""Chat templates as programs: jinja in its sandbox, with the names that transformers gives them.

Rendered text is what transformers renders; importing its own renderer would cost a start 1.3 s.
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

# What a request cannot set: what templates are given, and what transformers' own
# `apply_chat_template` takes for itself where callers of other servers may expect it to.
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
    """The conversation as `template` writes it. Values are what JSON can hold, nothing richer.

    Raises:
        Exception: whatever the template, a program, raises; also if it cannot be compiled.
    """
    return _compiled(template).render(
        messages=[_with_thinking(message) for message in messages],
        tools=tools or None,
        documents=None,
        add_generation_prompt=add_generation_prompt,
        **variables,
    )


def reads_tools(template: str) -> bool:
    """Whether the template looks at the tools it is given.

    Raises:
        jinja2.TemplateError: it cannot be compiled.
    """
    names = _environment().parse(template).find_all(nodes.Name)
    return any(name.name == "tools" and name.ctx == "load" for name in names)


def _with_thinking(message: dict[str, Any]) -> dict[str, Any]:
    """The message, its reasoning also under the name that gpt-oss's template reads."""
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
    """`{% generation %}` tells training what the model wrote; a prompt just shows its body."""

    tags = {"generation"}  # noqa: RUF012  # as jinja has it

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
    """jinja's own filter escapes for HTML."""
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
    return datetime.now().strftime(form)  # noqa: DTZ005  # the date on the wall here


# A template is a stranger's program. Two built-ins would hand it more than it needs: the class
# `dict` its attributes, and jinja's namespaces a place for names like `__class__`.


class _Dict:
    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


class _SafeNamespace(Namespace):
    def __init__(*args: Any, **kwargs: Any) -> None:  # a variable may be named self
        self, *pairs = args
        initial = dict(*pairs, **kwargs)
        for name in initial:
            _refuse_private(name)
        Namespace.__init__(self, initial)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"A template may not store {name!r} on a namespace.")
