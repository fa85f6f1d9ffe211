"""Prepares a chat request: its prompt, its grammar, and the format of its output."""

from dataclasses import dataclass

from service.domain.chat import ChatRequest, ResponseFormat, ToolMode
from service.domain.grammar import OutputConstraint
from service.domain.model import LocalModel
from service.errors import (
    ContextLengthExceeded,
    InvalidField,
    InvalidGrammar,
    UnsupportedField,
)
from service.text.chat_template import encode_prompt
from service.text.grammar_spec import GrammarSpec
from service.text.json_schemas import check_parameters
from service.text.output_parser import OutputFormat
from service.text.prompt import prompt_text
from service.text.prompt_length import least_num_tokens
from service.text.reasoning import MARKERS, ReasoningMarkers, Thinking, thinking_after
from service.text.tool_calls.syntax import SYNTAXES


@dataclass(frozen=True, slots=True)
class Conversation:
    """A prepared chat request. `grammar` is not compiled yet. It is None without a constraint."""

    prompt_token_ids: list[int]
    output_format: OutputFormat
    grammar: GrammarSpec | None


def prepare(chat: ChatRequest, model: LocalModel) -> Conversation:
    """Render and tokenize the prompt, and determine the format of its output.

    This takes long for a long prompt.

    Raises:
        TemplateRejected: The template rejects the conversation.
        ContextLengthExceeded: The prompt is far too long.
        InvalidField: The requested output cannot be enforced.
    """
    for tool in chat.tools:
        if tool.schema:
            check_parameters(tool.schema, tool.schema_field)
    text = prompt_text(chat.messages, chat.tools, chat.prompt, model)
    max_model_len = model.card.max_model_len
    if chat.prompt.truncate_prompt_tokens is None and (
        num_tokens := least_num_tokens(model.tokenizer, text, max_model_len)
    ):
        raise ContextLengthExceeded(num_tokens, max_model_len, chat.messages_field)
    markers = MARKERS.get(model.formats.reasoning)
    thinking = Thinking.CLOSED if markers is None else thinking_after(text, markers)
    syntax = SYNTAXES[model.formats.tools] if chat.tools else None
    begun, begun_field = _begun(chat, markers)
    grammar = GrammarSpec(
        response_format=chat.response_format,
        tools=chat.tools,
        tool_mode=chat.tool_mode,
        is_parallel=chat.has_parallel_calls and chat.tool_mode is not ToolMode.NAMED,
        syntax=syntax,
        markers=markers,
        thinking=thinking,
        control_token_id=model.grammars.control_token_id if model.grammars else _no_token,
        json_layout=model.json_layout,
        begun=begun,
        begun_field=begun_field,
    )
    reasoning = None if thinking is Thinking.CLOSED else markers
    shown = [*(syntax.markers if syntax else ())]
    if reasoning is not None:
        shown += [reasoning.start, reasoning.end]
    token_ids = {model.tokenizer.special_token_id(marker): marker for marker in shown}
    return Conversation(
        prompt_token_ids=encode_prompt(model.tokenizer, text, chat.prompt),
        output_format=OutputFormat(
            reasoning=reasoning,
            is_reasoning_open=thinking is Thinking.OPEN,
            syntax=syntax,
            call_names=frozenset(tool.name for tool in chat.tools),
            is_named=chat.tool_mode is ToolMode.NAMED,
            ends_after_call=not grammar.is_parallel,
            ends_at_repetition=chat.tool_mode is ToolMode.REQUIRED,
            has_only_calls=bool(chat.tools) and chat.tool_mode is not ToolMode.AUTO,
            shown_tokens={i: marker for i, marker in token_ids.items() if i is not None},
        ),
        grammar=grammar if grammar.is_needed else None,
    )


def response_grammar(response_format: ResponseFormat, model: LocalModel) -> GrammarSpec:
    """Return the grammar of an output that is only the response format."""
    return GrammarSpec(
        response_format=response_format,
        tools=(),
        tool_mode=ToolMode.AUTO,
        is_parallel=False,
        syntax=None,
        markers=None,
        thinking=Thinking.CLOSED,
        control_token_id=model.grammars.control_token_id if model.grammars else _no_token,
        json_layout=model.json_layout,
    )


def compile_grammar(grammar: GrammarSpec, model: LocalModel) -> OutputConstraint:
    """Return the constraint of an output. This takes long if the grammar is new.

    Raises:
        InvalidField or a subclass: The grammar cannot be compiled. The error names the field of the
            invalid part.
    """
    if model.grammars is None:
        raise UnsupportedField(grammar.field, "Structured outputs are not supported by this model.")
    if grammar.begun and not model.engine.capabilities.continues_constraints:
        raise UnsupportedField(
            "prompt.continue_final_message",
            "is not supported by this model in a response format or a forced tool call.",
        )
    rules = grammar.rules()
    try:
        constraint = model.grammars.compile(rules)
    except InvalidGrammar as error:
        for field, part in grammar.parts():
            try:
                model.grammars.compile(part)
            except InvalidGrammar as reason:
                raise InvalidField(field, f"This format cannot be enforced: {reason}.") from reason
        raise InvalidField(grammar.field, f"This format cannot be enforced: {error}.") from error
    if not grammar.begun:
        return constraint
    try:
        return constraint.after(grammar.begun)
    except InvalidGrammar as error:
        raise InvalidField(
            grammar.begun_field,
            "The message to be continued does not begin an output that the request allows.",
        ) from error


def cached_grammar(grammar: GrammarSpec, model: LocalModel) -> OutputConstraint | None:
    """Return the constraint of an output if it is cached; None otherwise.

    Raises:
        InvalidField or a subclass: The cache has the failure of an earlier compilation.
    """
    if grammar.begun or model.grammars is None:
        return None
    if not all(schema.is_known() for schema in grammar.schemas()):
        return None
    try:
        return model.grammars.cached(grammar.rules())
    except InvalidGrammar:
        return None  # `compile_grammar` finds the invalid part


def _begun(chat: ChatRequest, markers: ReasoningMarkers | None) -> tuple[str, str]:
    """Return the text, after its reasoning, of a final message to be continued; and its field."""
    if not chat.prompt.continue_final_message:
        return "", ""
    text = chat.messages[-1].content or ""
    if markers is not None:
        for marker in (markers.start, markers.end):
            text = text.rpartition(marker)[2]
    return text, f"{chat.messages_field}[{len(chat.messages) - 1}].content"


def _no_token(_: str) -> int | None:
    return None
