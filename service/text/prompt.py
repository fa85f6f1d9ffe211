"""The prompt of a conversation with tools."""

from collections.abc import Sequence
from dataclasses import replace

from service.domain.chat import Message, PromptOptions, Tool
from service.domain.model import LocalModel
from service.errors import TemplateRejected
from service.text.chat_template import encode_prompt, render_text
from service.text.tool_calls.prompt import template_tools, with_mistral_ids, with_tools_in_text
from service.text.tool_calls.syntax import SYNTAXES


def prompt_token_ids(
    model: LocalModel, messages: Sequence[Message], tools: Sequence[Tool], options: PromptOptions
) -> list[int]:
    """Return the token ids of the prompt of a conversation.

    Raises:
        TemplateRejected: The template rejects the conversation.
    """
    text = prompt_text(messages, tools, options, model)
    return encode_prompt(model.tokenizer, text, options)


def prompt_text(
    messages: Sequence[Message], tools: Sequence[Tool], options: PromptOptions, model: LocalModel
) -> str:
    """Return the prompt's text. It contains the tools in the form that the template supports.

    Raises:
        TemplateRejected: The template rejects the conversation.
    """
    formats = model.formats
    if formats.has_tool_template:
        if SYNTAXES[formats.tools].has_short_ids:
            messages = with_mistral_ids(messages)
        options = replace(options, tools=template_tools(tools))
        return render_text(model.tokenizer, messages, options)
    syntax = SYNTAXES[formats.tools]
    try:
        with_tools = with_tools_in_text(messages, tools, syntax)
        return render_text(model.tokenizer, with_tools, options)
    except TemplateRejected:
        if not tools:
            raise
    # Some templates, Gemma 2's among them, take no system message.
    with_tools = with_tools_in_text(messages, tools, syntax, has_system=False)
    return render_text(model.tokenizer, with_tools, options)
