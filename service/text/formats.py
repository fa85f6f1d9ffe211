"""Which formats a model writes: told by its chat template, or by the operator."""

from contextlib import suppress

import jinja2

from service.domain.model import ChatFormats, ReasoningFormat, ToolFormat
from service.text import jinja_template

# Looked for in a template in this order: Mistral's newer ones also hold what the older ones do.
_TOOL_SIGNS = (
    ("[ARGS]", ToolFormat.MISTRAL_ARGS),
    ("[TOOL_CALLS]", ToolFormat.MISTRAL),
    ("<start_function_call>", ToolFormat.GEMMA),
    ("<|tool_call>", ToolFormat.GEMMA4),
    ("<tool_call>", ToolFormat.HERMES),
    ("<|python_tag|>", ToolFormat.LLAMA3_JSON),
    ('"parameters": ', ToolFormat.LLAMA3_JSON),
)
_REASONING_SIGNS = (
    ("</think>", ReasoningFormat.THINK),
    ("[/THINK]", ReasoningFormat.MISTRAL),
)


def chat_formats(
    template: str | None,
    tools: ToolFormat | None = None,
    reasoning: ReasoningFormat | None = None,
    *,
    tool_template: str | None = None,
) -> ChatFormats:
    """What a model with this template writes, unless `tools` or `reasoning` say something else.

    `tool_template` is the template for conversations with tools; None: the same.
    Where the template shows tools in a way that is not known, calls are read as plain JSON; where
    it shows none, they are asked for as Hermes has them.
    """
    source = tool_template or template or ""
    reads_tools = False
    with suppress(jinja2.TemplateError):  # which every request will be told
        reads_tools = jinja_template.reads_tools(source)
    found = ToolFormat.HERMES
    if reads_tools:
        found = next((form for sign, form in _TOOL_SIGNS if sign in source), ToolFormat.JSON)
    both = source + (template or "")
    thinks = next((form for sign, form in _REASONING_SIGNS if sign in both), ReasoningFormat.NONE)
    return ChatFormats(
        tools=tools or found,
        has_tool_template=reads_tools,
        reasoning=reasoning or thinks,
    )
