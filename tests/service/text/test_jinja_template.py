"""Templates render as in transformers."""

from collections.abc import Callable
from typing import Any

import jinja2
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from service.text.jinja_template import render

CALL = {"name": "add", "arguments": {"b": [1, None], "a": "<é>"}}
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "  What is\n2 + 2?  "},
    {
        "role": "assistant",
        "content": "",
        "reasoning_content": "easy",
        "tool_calls": [{"type": "function", "function": CALL}],
    },
    {"role": "tool", "content": "4", "name": "add"},
]
TEMPLATES = {
    "chatml": "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}\n{% endfor %}",
    "block lines": """
        {%- for m in messages %}
          {% if m.role == 'user' %}
        {{ m['content'] }}
          {% endif %}
        {%- endfor %}
    """,
    "loop controls": "{% for m in messages %}{% if loop.index0 == 0 %}{% continue %}{% endif %}"
    "{{ m.role }}{% if m.role == 'assistant' %}{% break %}{% endif %}{% endfor %}",
    "namespace": "{% set ns = namespace(found=false, self=1) %}{% for m in messages %}"
    "{% if m.role == 'tool' %}{% set ns.found = m.name %}{% endif %}{% endfor %}{{ ns.found }}",
    "json": "{% for m in messages if m.tool_calls %}{{ m.tool_calls | tojson }}"
    "{{ m.tool_calls[0].function.arguments | tojson(indent=2, sort_keys=true) }}"
    "{{ m | tojson(ensure_ascii=true, separators=(',', ':')) }}{% endfor %}",
    "generation": "{% set x = 1 %}{% for m in messages %}{% generation %}{% set x = 2 %}"
    "{{ m.content }}{{ x }}{% endgeneration %}{{ x }}{% endfor %}",
    "dictionaries": "{% set d = dict(a=1, **{'b': 2}) %}{{ d }}{{ dict.fromkeys('ab', 0) }}",
    "date": "{{ strftime_now('%Y') }}",
    "reasoning": "{% for m in messages %}{{ m.thinking }}|{{ m.reasoning_content }}{% endfor %}",
    "absent": "{{ tools is none }}{{ documents is none }}{{ missing is defined }}{{ missing }}",
    "variables": "{{ bos_token }}{{ enable_thinking }}{{ add_generation_prompt }}",
}


def theirs(template: str, variables: dict[str, Any]) -> str:
    rendered: Any = render_jinja_template(  # the result is a pair; its annotation is wrong
        [MESSAGES], chat_template=template, add_generation_prompt=True, **variables
    )
    return str(rendered[0][0])


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())
def test_template_renders_as_in_transformers(template: str) -> None:
    variables = {"bos_token": "<s>", "enable_thinking": False}
    text = render(template, MESSAGES, variables, add_generation_prompt=True)
    assert text == theirs(template, variables)


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no') }}",
        "{% for %}",
        "{{ messages.append(1) }}",
        "{{ messages.__class__ }}",
        "{{ dict.mro() }}",
        "{{ dict.__class__.__base__.__subclasses__() }}",
        "{{ namespace(_x=1) }}",
        "{% set ns = namespace() %}{% set ns.__globals__ = 1 %}",
        "{{ render.__globals__ }}{{ raise_exception.__globals__.json }}",
        "{{ strftime_now.__globals__['json'] }}",
        "{{ '{0.__class__}'.format(messages) }}",
    ],
)
def test_template_is_sandboxed_as_in_transformers(template: str) -> None:
    ours = outcome(lambda: render(template, MESSAGES, {}, add_generation_prompt=True))
    assert ours == outcome(lambda: theirs(template, {}))


def outcome(rendering: Callable[[], str]) -> str | type[Exception]:
    """Return the rendered text, or the type of the error."""
    try:
        return rendering()
    except jinja2.TemplateError as error:
        return type(error)
