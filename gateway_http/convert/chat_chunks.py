"""Converts streamed chat completions to OpenAI's chunks, in the order that its clients rely on.

1. the roles of all choices, with the first token of any choice
2. the content of the choices
3. for each choice, a finish reason with an empty delta
4. the usage without choices, if requested
"""

from msgspec import UNSET, UnsetType

from chatrpc.v1 import chat_pb2
from gateway_http.convert import chat_completions
from gateway_http.convert.logprobs import prompt_logprobs
from gateway_http.convert.stream_state import StreamState
from gateway_http.protocol import response as openai
from gateway_http.protocol.request import ChatCompletionRequest


class ChunkStream:
    """Converts the chunks of one streamed chat completion.

    Attributes:
        is_started: True once a chunk with a token has been returned.
    """

    def __init__(self, request: ChatCompletionRequest) -> None:
        self._n = request.n or 1
        self._returns_reasoning = request.returns_reasoning
        self._service_tier = chat_completions.service_tier(request)
        self._state = StreamState(request.stream_options, chat_pb2.ChatCompletionChunk())
        self._is_prompt_sent = False
        self.is_started = False

    def push(
        self, chunk: chat_pb2.ChatCompletionChunk, model: str
    ) -> list[openai.ChatCompletionChunk]:
        """Convert a chunk to OpenAI's chunks. There are none before the first token.

        Args:
            chunk: The service's chunk.
            model: The name of its model for clients. Only that of the first chunk is used.
        """
        self._state.add(chunk, model)
        choices: list[openai.ChunkChoice] = []
        for delta in chunk.choices:
            new = _choices(delta, returns_reasoning=self._returns_reasoning)
            if not self.is_started and (new or delta.num_tokens):
                self.is_started = True
                choices += _roles(self._n)
            choices += new
        usage = self._state.usage_so_far
        chunks = [self._chunk([choice], usage) for choice in choices]
        if chunks and not self._is_prompt_sent:
            self._is_prompt_sent = True
            head = self._state.head
            chunks[0].prompt_token_ids = list(head.prompt_token_ids) or UNSET
            chunks[0].prompt_logprobs = prompt_logprobs(head.prompt_logprobs, has_first=False)
        return chunks

    def finish(self) -> list[openai.ChatCompletionChunk]:
        """Return the chunks that follow the service's last chunk."""
        usage = self._state.final_usage
        return [] if usage is None else [self._chunk([], usage)]

    def _chunk(
        self, choices: list[openai.ChunkChoice], usage: openai.Usage | UnsetType | None
    ) -> openai.ChatCompletionChunk:
        state = self._state
        return openai.ChatCompletionChunk(
            id=state.id,
            created=state.created,
            model=state.model,
            choices=choices,
            usage=usage,
            system_fingerprint=state.fingerprint,
            service_tier=self._service_tier,
        )


def _roles(n: int) -> list[openai.ChunkChoice]:
    return [
        openai.ChunkChoice(
            index=index, delta=openai.Delta(role="assistant", content="", refusal=None)
        )
        for index in range(n)
    ]


def _choices(delta: chat_pb2.ChoiceDelta, *, returns_reasoning: bool) -> list[openai.ChunkChoice]:
    """Return the choices of a delta. Clients expect content and finish reason in two choices."""
    index, logprobs, token_ids = delta.index, delta.logprobs, delta.token_ids
    deltas = _deltas(delta.delta, returns_reasoning=returns_reasoning)
    if not deltas and (logprobs or token_ids):
        # The text of a token is not complete yet.
        deltas = [openai.Delta(content="")]
    choices = [openai.ChunkChoice(index=index, delta=each) for each in deltas]
    if logprobs:
        choices[0].logprobs = chat_completions.logprobs(logprobs)
    if token_ids:
        choices[0].token_ids = list(token_ids)
    if delta.finish_reason:
        choices.append(
            openai.ChunkChoice(
                index=index,
                delta=openai.Delta(),
                finish_reason=chat_completions.finish_reason(delta.finish_reason),
                stop_reason=chat_completions.stop_reason(delta.matched_stop),
            )
        )
    return choices


def _deltas(delta: chat_pb2.Delta, *, returns_reasoning: bool) -> list[openai.Delta]:
    """Return a delta with the text, if any, and one delta for each piece of a tool call.

    Clients accumulate pieces in this form.
    """
    content, refusal = delta.content, delta.refusal
    reasoning = delta.reasoning_content if returns_reasoning else ""
    deltas = []
    if content or reasoning or refusal:
        text = openai.Delta(
            content=content or UNSET,
            refusal=refusal or UNSET,
            reasoning_content=reasoning or UNSET,
        )
        deltas.append(text)
    for call in delta.tool_calls:
        deltas += [openai.Delta(tool_calls=[piece]) for piece in _call_pieces(call)]
    return deltas


def _call_pieces(call: chat_pb2.ToolCall) -> list[openai.ToolCall]:
    """Return the pieces of a tool call.

    The first piece has the id, the type and the name, and no arguments. Clients concatenate these
    fields, so no later piece repeats them.
    """
    pieces = []
    if call.id:
        pieces.append(
            openai.ToolCall(
                index=call.index,
                id=call.id,
                type="function",
                function=openai.FunctionCall("", call.function.name),
            )
        )
    if call.function.arguments_json or not call.id:
        arguments = openai.FunctionCall(call.function.arguments_json)
        pieces.append(openai.ToolCall(index=call.index, function=arguments))
    return pieces
