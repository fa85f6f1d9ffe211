"""A request as the engine and the readers of its answers need it: prompt, grammar, reading."""

from dataclasses import dataclass, replace

from service.errors import InvalidField, InvalidGrammar, UnsupportedField
from service.text.answer_grammar import AnswerGrammar
from service.text.chat_template import encode_prompt, render_text
from service.text.reading import Reading
from service.text.reasoning import MARKERS, Thinking, thinking_after
from service.text.tool_calls.prompt import template_tools, with_mistral_ids, with_tools_in_text
from service.text.tool_calls.syntax import SYNTAXES
from service.types import (
    AnswerConstraint,
    ChatFormats,
    ChatRequest,
    Message,
    PromptOptions,
    ResponseFormat,
    ServedModel,
    ToolFormat,
    ToolMode,
)


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a request comes to. `grammar` is yet to be compiled."""

    prompt_token_ids: list[int]
    reading: Reading
    grammar: AnswerGrammar | None


def prepare(chat: ChatRequest, model: ServedModel) -> Conversation:
    """Render and tokenize the prompt, and find out how its answer will look. It takes a while.

    Raises:
        TemplateRefused: the template refuses the conversation.
        InvalidField: what the answer is asked to be cannot be had.
    """
    messages, options = _with_tools(chat, model.formats)
    text = render_text(model.tokenizer, messages, options)
    markers = MARKERS.get(model.formats.reasoning)
    thinking = Thinking.CLOSED if markers is None else thinking_after(text, markers)
    syntax = SYNTAXES[model.formats.tools] if chat.tools else None
    grammar = AnswerGrammar(
        response_format=chat.response_format,
        tools=chat.tools,
        tool_mode=chat.tool_mode,
        is_parallel=chat.has_parallel_calls and chat.tool_mode is not ToolMode.NAMED,
        syntax=syntax,
        markers=markers,
        thinking=thinking,
        control_token_id=model.grammars.control_token_id if model.grammars else _no_token,
    )
    reasoning = None if thinking is Thinking.CLOSED else markers
    shown = (*((reasoning.start, reasoning.end) if reasoning else ()),)
    shown += syntax.markers if syntax else ()
    token_ids = {model.tokenizer.special_token_id(marker): marker for marker in shown}
    return Conversation(
        prompt_token_ids=encode_prompt(model.tokenizer, text, options),
        reading=Reading(
            reasoning=reasoning,
            is_thinking=thinking is Thinking.OPEN,
            syntax=syntax,
            call_names=frozenset(tool.name for tool in chat.tools),
            is_named=chat.tool_mode is ToolMode.NAMED,
            ends_after_call=not grammar.is_parallel,
            shown_tokens={i: marker for i, marker in token_ids.items() if i is not None},
        ),
        grammar=grammar if grammar.is_needed else None,
    )


def form_grammar(response_format: ResponseFormat, model: ServedModel) -> AnswerGrammar:
    """The grammar of an answer that is nothing but the form."""
    return AnswerGrammar(
        response_format=response_format,
        tools=(),
        tool_mode=ToolMode.AUTO,
        is_parallel=False,
        syntax=None,
        markers=None,
        thinking=Thinking.CLOSED,
        control_token_id=model.grammars.control_token_id if model.grammars else _no_token,
    )


def compile_grammar(grammar: AnswerGrammar, model: ServedModel) -> AnswerConstraint:
    """The constraint of an answer. Long work where the grammar has not been seen before.

    Raises:
        InvalidField, or one of its kinds: it cannot be compiled, by the part that is to blame.
    """
    if model.grammars is None:
        raise UnsupportedField(
            grammar.field, "This model's tokenizer is of a kind whose answers cannot be forced."
        )
    rules = grammar.rules()
    try:
        return model.grammars.compile(rules)
    except InvalidGrammar as error:
        for field, part in grammar.parts():
            try:
                model.grammars.compile(part)
            except InvalidGrammar as reason:
                raise InvalidField(field, f"No answer can be held to it: {reason}") from reason
        raise InvalidField(grammar.field, f"No answer can be held to it: {error}") from error


def _with_tools(
    chat: ChatRequest, formats: ChatFormats
) -> tuple[tuple[Message, ...], PromptOptions]:
    """Messages and options that show the template the tools, in the way that it can take them."""
    if not formats.has_tool_template:
        messages = with_tools_in_text(chat.messages, chat.tools, SYNTAXES[formats.tools])
        return messages, chat.prompt
    messages = chat.messages
    if formats.tools in (ToolFormat.MISTRAL, ToolFormat.MISTRAL_ARGS):
        messages = with_mistral_ids(messages)
    return messages, replace(chat.prompt, tools=template_tools(chat.tools))


def _no_token(_: str) -> int | None:
    return None
