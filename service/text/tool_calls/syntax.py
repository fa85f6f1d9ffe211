"""The syntax of tool calls in each format.

To add a format, add a member to `ToolFormat` (service/domain/model.py) and its syntax to
`SYNTAXES`. The grammar (`rules`), the prompt for templates without tools (`prompt`), the parser and
the detection by the model's template follow from the syntax.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

import jinja2

from service.domain.model import ChatFormats, ReasoningFormat, ToolFormat
from service.text import jinja_template
from service.text.reasoning import detect_reasoning_format
from service.text.tool_calls.events import CallParser
from service.text.tool_calls.leading_parser import LeadingParser
from service.text.tool_calls.marked_parser import (
    GemmaBody,
    HermesBody,
    MarkedParser,
    MistralBody,
)


@dataclass(frozen=True, slots=True)
class CallSyntax:
    """The syntax of tool calls in one format.

    Calls are written as `opening`, the calls with `separator` between them, and `closing`. A call
    is its name and its arguments, a JSON object: `before_name`, the name, `after_name`, the
    arguments, `after_arguments`.

    Attributes:
        parser: Creates a parser for calls of the functions with the given names.
        markers: Texts of the syntax that can be control tokens.
        trigger: The marker with which calls begin. If it is empty, calls can only be at the
            beginning of an output.
        template_signs: If one of these texts is in a chat template that accepts tools, the model
            uses this format.
        has_short_ids: True if the format's templates accept only call ids of nine letters and
            digits.
    """

    parser: Callable[[frozenset[str]], CallParser]
    before_name: str
    after_name: str
    after_arguments: str
    opening: str = ""
    separator: str = ""
    closing: str = ""
    markers: tuple[str, ...] = ()
    trigger: str = ""
    template_signs: tuple[str, ...] = ()
    has_short_ids: bool = False

    def written(self, calls: Iterable[tuple[str, str]]) -> str:
        """Return the text of calls, each given as a name and its arguments in JSON."""
        texts = (
            f"{self.before_name}{name}{self.after_name}{arguments}{self.after_arguments}"
            for name, arguments in calls
        )
        return f"{self.opening}{self.separator.join(texts)}{self.closing}"


def chat_formats(
    template: str | None,
    tools: ToolFormat | None = None,
    reasoning: ReasoningFormat | None = None,
    *,
    tool_template: str | None = None,
) -> ChatFormats:
    """Return the formats of a model, as detected by its chat template.

    If the template accepts tools in an unknown format, the format is plain JSON. If it accepts no
    tools, the format is that of Hermes, which the prompt then describes.

    Args:
        template: The template's source; None if the model has none.
        tools: The format to use instead of the detected one.
        reasoning: The format to use instead of the detected one.
        tool_template: The template for conversations with tools; None if it is the same one.
    """
    source = tool_template or template or ""
    shows_tools = False
    with suppress(jinja2.TemplateError):  # every request reports the error
        shows_tools = jinja_template.reads_tools(source)
    return ChatFormats(
        tools=tools or (_detect_tool_format(source) if shows_tools else ToolFormat.HERMES),
        has_tool_template=shows_tools,
        reasoning=reasoning or detect_reasoning_format(source + (template or "")),
    )


def _detect_tool_format(template: str) -> ToolFormat:
    for name, syntax in SYNTAXES.items():
        if any(sign in template for sign in syntax.template_signs):
            return name
    return ToolFormat.JSON


def _hermes(names: frozenset[str]) -> CallParser:
    return MarkedParser(("<tool_call>",), lambda _: HermesBody(names))


def _llama3(names: frozenset[str]) -> CallParser:
    return LeadingParser(names, "<|python_tag|>")


def _mistral(names: frozenset[str]) -> CallParser:
    return MarkedParser(("[TOOL_CALLS]",), lambda _: MistralBody(names))


def _gemma(names: frozenset[str]) -> CallParser:
    return MarkedParser(
        ("<start_function_call>",), lambda _: GemmaBody(names, "<end_function_call>", "<escape>")
    )


def _gemma4(names: frozenset[str]) -> CallParser:
    return MarkedParser(("<|tool_call>",), lambda _: GemmaBody(names, "<tool_call|>", '<|"|>'))


# Detection takes the first format that matches. Templates of newer Mistral models also have the
# signs of older ones.
SYNTAXES = {
    # https://docs.mistral.ai/guides/tokenization, from version 11 on
    ToolFormat.MISTRAL_ARGS: CallSyntax(
        _mistral,
        before_name="[TOOL_CALLS]",
        after_name="[ARGS]",
        after_arguments="",
        markers=("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
        trigger="[TOOL_CALLS]",
        template_signs=("[ARGS]",),
        has_short_ids=True,
    ),
    # The same page, up to version 7.
    ToolFormat.MISTRAL: CallSyntax(
        _mistral,
        opening="[TOOL_CALLS] [",
        before_name='{"name": "',
        after_name='", "arguments": ',
        after_arguments="}",
        separator=", ",
        closing="]",
        markers=("[TOOL_CALLS]",),
        trigger="[TOOL_CALLS]",
        template_signs=("[TOOL_CALLS]",),
        has_short_ids=True,
    ),
    # FunctionGemma and Gemma 4. They have their own quotes for strings, which the parser accepts.
    # The grammar forces plain JSON instead.
    ToolFormat.GEMMA: CallSyntax(
        _gemma,
        before_name="<start_function_call>call:",
        after_name="",
        after_arguments="<end_function_call>",
        markers=("<start_function_call>", "<end_function_call>", "<escape>"),
        trigger="<start_function_call>",
        template_signs=("<start_function_call>",),
    ),
    ToolFormat.GEMMA4: CallSyntax(
        _gemma4,
        before_name="<|tool_call>call:",
        after_name="",
        after_arguments="<tool_call|>",
        markers=("<|tool_call>", "<tool_call|>", '<|"|>'),
        trigger="<|tool_call>",
        template_signs=("<|tool_call>",),
    ),
    # Qwen 2.5 and 3, Hermes 2 and 3, SmolLM3, and other models that adopted it.
    ToolFormat.HERMES: CallSyntax(
        _hermes,
        before_name='<tool_call>\n{"name": "',
        after_name='", "arguments": ',
        after_arguments="}\n</tool_call>",
        separator="\n",
        markers=("<tool_call>", "</tool_call>"),
        trigger="<tool_call>",
        template_signs=("<tool_call>",),
    ),
    # https://www.llama.com/docs/model-cards-and-prompt-formats/llama3_1
    ToolFormat.LLAMA3_JSON: CallSyntax(
        _llama3,
        before_name='{"name": "',
        after_name='", "parameters": ',
        after_arguments="}",
        separator="; ",
        markers=("<|python_tag|>",),
        template_signs=("<|python_tag|>", '"parameters": '),
    ),
    # Any other format. It has no signs.
    ToolFormat.JSON: CallSyntax(
        LeadingParser,
        before_name='{"name": "',
        after_name='", "arguments": ',
        after_arguments="}",
        separator="\n",
    ),
}
