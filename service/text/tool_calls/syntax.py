"""How calls are written in each format; what forces, shows and reads them follows from it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from service.domain.model import ToolFormat
from service.text.tool_calls.events import CallParser
from service.text.tool_calls.leading import LeadingParser
from service.text.tool_calls.marked import GemmaBody, HermesBody, MarkedParser, MistralBody

_Parser = Callable[[frozenset[str]], CallParser]


@dataclass(frozen=True, slots=True)
class CallSyntax:
    """Calls in one format: `opening`, calls with `separator` between them, `closing`.

    A call is its name and its arguments, a JSON object, between `before_name`, `after_name` and
    `after_arguments`. `markers` are texts that may be control tokens; a `trigger` among them, at
    the very beginning, says that a call follows. Formats without one are told by an answer's
    beginning. `parser` makes a parser for calls of the functions that it is given.
    """

    parser: _Parser
    before_name: str
    after_name: str
    after_arguments: str
    opening: str = ""
    separator: str = ""
    closing: str = ""
    markers: tuple[str, ...] = ()
    trigger: str = ""

    def written(self, calls: Iterable[tuple[str, str]]) -> str:
        """The calls, each a name and its arguments as JSON, as the model would write them."""
        texts = (
            f"{self.before_name}{name}{self.after_name}{arguments}{self.after_arguments}"
            for name, arguments in calls
        )
        return f"{self.opening}{self.separator.join(texts)}{self.closing}"


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


SYNTAXES = {
    # Qwen 2.5 and 3, Hermes 2 and 3, SmolLM3, and others that followed them.
    ToolFormat.HERMES: CallSyntax(
        _hermes,
        before_name='<tool_call>\n{"name": "',
        after_name='", "arguments": ',
        after_arguments="}\n</tool_call>",
        separator="\n",
        markers=("<tool_call>", "</tool_call>"),
        trigger="<tool_call>",
    ),
    # https://www.llama.com/docs/model-cards-and-prompt-formats/llama3_1
    ToolFormat.LLAMA3_JSON: CallSyntax(
        _llama3,
        before_name='{"name": "',
        after_name='", "parameters": ',
        after_arguments="}",
        separator="; ",
        markers=("<|python_tag|>",),
    ),
    # https://docs.mistral.ai/guides/tokenization, up to version 7 and from version 11 on
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
    ),
    ToolFormat.MISTRAL_ARGS: CallSyntax(
        _mistral,
        before_name="[TOOL_CALLS]",
        after_name="[ARGS]",
        after_arguments="",
        markers=("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
        trigger="[TOOL_CALLS]",
    ),
    # FunctionGemma and Gemma 4. They quote strings in a way of their own, which is read; what is
    # forced is JSON in its place.
    ToolFormat.GEMMA: CallSyntax(
        _gemma,
        before_name="<start_function_call>call:",
        after_name="",
        after_arguments="<end_function_call>",
        markers=("<start_function_call>", "<end_function_call>", "<escape>"),
        trigger="<start_function_call>",
    ),
    ToolFormat.GEMMA4: CallSyntax(
        _gemma4,
        before_name="<|tool_call>call:",
        after_name="",
        after_arguments="<tool_call|>",
        markers=("<|tool_call>", "<tool_call|>", '<|"|>'),
        trigger="<|tool_call>",
    ),
    ToolFormat.JSON: CallSyntax(
        LeadingParser,
        before_name='{"name": "',
        after_name='", "arguments": ',
        after_arguments="}",
        separator="\n",
    ),
}
