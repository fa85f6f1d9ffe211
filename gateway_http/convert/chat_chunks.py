"""From the wire's stream of chunks to OpenAI's, in the order that its clients rely on.

role of choice 0, role of choice 1, ...    with the first token of any choice
content of the choices, as it comes
a finish reason with an empty delta        one for each choice
usage without choices                      where it was asked for
"""

from msgspec import UNSET, UnsetType

from chatrpc.v1 import chat_pb2
from gateway_http.convert import chat_completions
from gateway_http.convert.logprobs import prompt_logprobs
from gateway_http.protocol import response as openai


class ChunkStream:
    """The chunks of one streamed completion.

    With `running_usage`, every chunk tells the tokens counted so far.
    """

    def __init__(self, n: int, include_usage: bool, running_usage: bool) -> None:
        self._n = n
        self._include_usage = include_usage
        self._running_usage = include_usage and running_usage
        self._head = chat_pb2.ChatCompletionChunk()
        self._usage = chat_pb2.Usage()
        self._is_prompt_told = False
        self.is_started = False

    def push(self, chunk: chat_pb2.ChatCompletionChunk) -> list[openai.ChatCompletionChunk]:
        """OpenAI's chunks for one of the wire's; none while no token has been generated."""
        if chunk.id:
            self._head = chunk
        deltas = [delta for delta in chunk.choices if _has_output(delta)]
        self._usage.completion_tokens += sum(delta.num_tokens for delta in deltas)
        if chunk.HasField("usage"):
            self._usage = chunk.usage
        choices = [choice for delta in deltas for choice in _choices(delta)]
        if deltas and not self.is_started:
            self.is_started = True
            choices = [*_roles(self._n), *choices]
        chunks = [self._chunk([choice], self._usage_so_far()) for choice in choices]
        if chunks and not self._is_prompt_told:
            self._is_prompt_told = True
            chunks[0].prompt_token_ids = list(self._head.prompt_token_ids) or UNSET
            chunks[0].prompt_logprobs = prompt_logprobs(self._head.prompt_logprobs, has_first=False)
        return chunks

    def finish(self) -> list[openai.ChatCompletionChunk]:
        """What follows the last of the wire's chunks."""
        return [self._chunk([], chat_completions.usage(self._usage))] if self._include_usage else []

    def _usage_so_far(self) -> openai.Usage | UnsetType | None:
        if self._running_usage:
            return chat_completions.usage(self._usage)
        return None if self._include_usage else UNSET

    def _chunk(
        self, choices: list[openai.ChunkChoice], usage: openai.Usage | UnsetType | None
    ) -> openai.ChatCompletionChunk:
        return openai.ChatCompletionChunk(
            id=self._head.id,
            created=self._head.create_time.seconds,
            model=self._head.model,
            choices=choices,
            usage=usage,
            system_fingerprint=self._head.system_fingerprint or UNSET,
        )


def _has_output(delta: chat_pb2.ChoiceDelta) -> bool:
    return bool(delta.num_tokens or delta.finish_reason or _has_content(delta))


def _has_content(delta: chat_pb2.ChoiceDelta) -> bool:
    said = delta.delta
    return bool(
        said.content
        or said.reasoning_content
        or said.tool_calls
        or said.refusal
        or delta.logprobs
        or delta.token_ids
    )


def _roles(n: int) -> list[openai.ChunkChoice]:
    return [
        openai.ChunkChoice(
            index=index, delta=openai.Delta(role="assistant", content="", refusal=None)
        )
        for index in range(n)
    ]


def _choices(delta: chat_pb2.ChoiceDelta) -> list[openai.ChunkChoice]:
    """The content of a delta and its finish reason, which clients want apart."""
    choices = []
    if _has_content(delta):
        choices = [
            openai.ChunkChoice(index=delta.index, delta=said) for said in _deltas(delta.delta)
        ]
        choices[0].logprobs = chat_completions.logprobs(delta.logprobs)
        choices[0].token_ids = list(delta.token_ids) or UNSET
    if delta.finish_reason:
        choices.append(
            openai.ChunkChoice(
                index=delta.index,
                delta=openai.Delta(),
                finish_reason=chat_completions.finish_reason(delta.finish_reason),
                stop_reason=chat_completions.stop_reason(delta.matched_stop),
            )
        )
    return choices


def _deltas(said: chat_pb2.Delta) -> list[openai.Delta]:
    """Text, if there is any, and each piece of a call by itself, as clients accumulate them."""
    pieces = [piece for call in said.tool_calls for piece in _call_pieces(call)]
    deltas = [openai.Delta(tool_calls=[piece]) for piece in pieces]
    if said.content or said.reasoning_content or said.refusal or not deltas:
        deltas.insert(0, _text_delta(said))
    return deltas


def _text_delta(said: chat_pb2.Delta) -> openai.Delta:
    is_content = not (said.reasoning_content or said.refusal)
    return openai.Delta(
        # Log probabilities of a token whose text is still held back come with an empty text.
        content=said.content if said.content or is_content else UNSET,
        refusal=said.refusal or UNSET,
        reasoning_content=said.reasoning_content or UNSET,
    )


def _call_pieces(call: chat_pb2.ToolCall) -> list[openai.ToolCall]:
    """The first piece of a call has its id, its type and its name, and no arguments yet; clients
    concatenate these, so no later piece may repeat them.
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
