"""From a request to text: the prompt, the engine's tokens, the text of the answer."""

from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass

from chatrpc.v1 import chat_pb2
from service.domain.chat import ChatRequest
from service.domain.engine import FinishReason, Request, TokenOutput
from service.domain.grammar import AnswerConstraint
from service.domain.model import ServedModel, Tokenizer
from service.domain.sampling import SamplingParams
from service.errors import InvalidField
from service.rpc.calls.caller import (
    current_caller,
    note_requests,
    note_timings,
    reserve_exactly,
)
from service.rpc.calls.deadline import until
from service.rpc.calls.work_pools import WorkPools
from service.rpc.decode import chat as decode
from service.text import conversation as conversations
from service.text.conversation import Conversation
from service.text.output_parser import Reading
from service.text.output_text import AnswerText, TextDelta


@dataclass(frozen=True, slots=True)
class Prepared:
    """A chat completion that is ready for the engine, and how its answers are to be read."""

    chat: ChatRequest
    request: Request
    reading: Reading
    constraint: AnswerConstraint | None = None
    constrained_field: str = ""  # where the request asks for the constraint


async def prepare(
    params: chat_pb2.ChatCompletionParams, model: ServedModel, deadline: float, pools: WorkPools
) -> Prepared:
    """Check a request, render and tokenize its conversation, compile its grammar.

    Args:
        deadline: Of `time.monotonic()`; the caller does not wait any longer.

    Raises:
        InvalidField, or one of its kinds: The first mistake found.
        DeadlinePassed, PreparationFull
    """
    caller = current_caller()
    priority = decode.priority(params, caller)
    async with until(deadline):
        chat, conversation, constraint = await pools.text(_read, params, model)
        grammar = conversation.grammar
        if grammar is not None and constraint is None:
            compile_grammar = conversations.compile_grammar
            constraint = await pools.grammar(grammar.length, compile_grammar, grammar, model)
    sampling = chat.sampling
    request = Request(
        prompt_token_ids=tuple(conversation.prompt_token_ids),
        sampling=sampling,
        stop_token_ids=stop_token_ids(sampling, model, constraint),
        deadline=deadline,
        cache_salt=chat.cache_salt,
        n=chat.n,
        priority=priority,
        num_logprobs=chat.num_logprobs,
        num_prompt_logprobs=chat.num_prompt_logprobs,
        bad_token_sequences=tuple(bad_token_sequences(sampling.bad_words, model.tokenizer)),
        constraint=constraint,
        caller=caller,
    )
    return Prepared(
        chat,
        request,
        conversation.reading,
        constraint,
        grammar.field if grammar is not None else "",
    )


def _read(
    params: chat_pb2.ChatCompletionParams, model: ServedModel
) -> tuple[ChatRequest, Conversation, AnswerConstraint | None]:
    """The request checked, its conversation, and its constraint if that is cached.

    Runs on a thread: a long conversation takes a while.
    """
    max_model_len = model.card.max_model_len
    decode.check_fits(params.messages, model.tokenizer.max_token_chars, max_model_len, params.tools)
    chat = decode.chat_request(params, model.sampling_defaults, model.vocab_size)
    conversation = conversations.prepare(chat, model)
    prompt = conversation.prompt_token_ids
    if prompt and max(prompt) >= model.vocab_size:
        raise InvalidField("messages", f"The model does not know the token {max(prompt)}.")
    grammar = conversation.grammar
    cached = None if grammar is None else conversations.cached_grammar(grammar, model)
    return chat, conversation, cached


async def generate(model: ServedModel, prepared: Prepared) -> AsyncGenerator[TextDelta, None]:
    """The answers as they are generated, until the last of them has a finish reason.

    The first delta is empty: the request has been admitted.

    Raises:
        What `Engine.generate` raises, and DeadlinePassed when the deadline passes at any time.
        InvalidField: the request's grammar cannot be followed to the end of an answer.
    """
    request = prepared.request
    note_requests([request])
    reserve_exactly([request], model.card.max_model_len)
    async with aclosing(model.engine.generate(request, is_reserved=True)) as outputs:
        note_timings(0, (await anext(outputs)).timings)
        yield TextDelta()
        answers = {i: _Answer(model, prepared) for i in range(request.n)}
        ended = None
        while answers:
            async with until(request.deadline):
                output = await outputs.asend(ended)
            note_timings(0, output.timings)
            ended = None
            if output.is_progress:
                continue
            for delta in answers[output.index].read(output):
                if delta.finish_reason is not None:
                    ended = output.index  # of which the engine may know nothing
                    del answers[ended]
                yield delta


class _Answer:
    """One of the answers to a request: from the engine's tokens to what they say."""

    def __init__(self, model: ServedModel, prepared: Prepared) -> None:
        self._prepared = prepared
        self._text = AnswerText(
            model.tokenizer, prepared.request.sampling, prepared.reading.shown_tokens
        )
        self._reader = prepared.reading.reader()
        self._token_ids: list[int] = []

    def read(self, output: TokenOutput) -> Iterator[TextDelta]:
        """The deltas that `output` makes, up to the one that ends the answer."""
        self._token_ids += output.token_ids
        for piece in self._reader.pieces(output):
            delta = self._reader.read(self._text.push(piece))
            if delta.finish_reason is not None:
                check_form(
                    self._prepared.constraint,
                    self._prepared.constrained_field,
                    self._token_ids,
                    output,
                )
                yield delta
                return
            yield delta


def stop_token_ids(
    sampling: SamplingParams, model: ServedModel, constraint: AnswerConstraint | None
) -> frozenset[int]:
    """Every token that ends an answer, the model's own included unless they are to be ignored."""
    if sampling.ignore_eos and constraint is None:
        return sampling.stop_token_ids
    # A grammar that is fulfilled allows nothing but an end.
    return sampling.stop_token_ids | model.eos_token_ids


def bad_token_sequences(words: Iterable[str], tokenizer: Tokenizer) -> Iterator[tuple[int, ...]]:
    """Each word as it is written at the start of a text and after a space."""
    for word in words:
        for text in {word, f" {word.lstrip()}"}:
            if token_ids := tokenizer.encode(text, add_special_tokens=False):
                yield tuple(token_ids)


def check_form(
    constraint: AnswerConstraint | None, field: str, token_ids: list[int], last: TokenOutput
) -> None:
    """Raise InvalidField for an answer that ends, and not in its form, for want of a token.

    Args:
        field: where the request asks for the form.
        token_ids: the whole answer, which ends in `last`.
    """
    if constraint is None:
        return
    reason = constraint.failure
    if last.finish_reason is FinishReason.STOP and not last.token_ids and reason is None:
        # What the grammar allows, the request's other options forbid, its bad words say.
        if constraint.is_fulfilled(token_ids):
            return
        reason = "the request's other options leave no token that may follow"
    if reason is not None:
        raise InvalidField(field, f"No answer can be held to it: {reason}")
