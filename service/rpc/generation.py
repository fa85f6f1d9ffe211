"""From a checked request to text: the prompt, the engine's tokens, the answer's words."""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass

from service.errors import InvalidField
from service.rpc import phases
from service.rpc.caller import current_caller, reserve_exactly
from service.rpc.deadline import until
from service.text import conversation as conversations
from service.text.answer import AnswerText, TextDelta
from service.text.reading import Reading
from service.types import (
    AnswerConstraint,
    ChatRequest,
    FinishReason,
    Request,
    SamplingParams,
    ServedModel,
    Tokenizer,
    TokenOutput,
)

# Not the event loop's own pool: that one is waited for at exit, however long a tokenization takes.
tokenizing = ThreadPoolExecutor(max_workers=2, thread_name_prefix="tokenize")
# Nor the tokenizers' threads: a hostile grammar takes one of these for a second or two.
compiling = ThreadPoolExecutor(max_workers=2, thread_name_prefix="grammar")


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the engine is asked, and how its answers are to be read."""

    request: Request
    reading: Reading
    constraint: AnswerConstraint | None = None
    constrained_field: str = ""  # where the request asks for the constraint


async def prepare(chat: ChatRequest, model: ServedModel, deadline: float) -> Prepared:
    """Render and tokenize the conversation, off the event loop: a long one takes a while.

    Args:
        deadline: of `time.monotonic()`; when the caller will not wait any longer.

    Raises:
        TemplateRefused
        InvalidField: the prompt holds a token that the model does not know, or the form that the
            answer must take is none.
        DeadlinePassed
    """
    loop = asyncio.get_running_loop()
    constraint = None
    async with until(deadline):
        conversation = await loop.run_in_executor(tokenizing, conversations.prepare, chat, model)
        grammar = conversation.grammar
        if grammar is not None:
            constraint = await loop.run_in_executor(
                compiling, conversations.compile_grammar, grammar, model
            )
    prompt = conversation.prompt_token_ids
    if prompt and max(prompt) >= model.vocab_size:
        raise InvalidField("messages", f"The model does not know the token {max(prompt)}.")
    sampling = chat.sampling
    request = Request(
        prompt_token_ids=tuple(prompt),
        sampling=sampling,
        stop_token_ids=stop_token_ids(sampling, model, constraint),
        deadline=deadline,
        cache_salt=chat.cache_salt,
        n=chat.n,
        priority=chat.priority,
        num_logprobs=chat.num_logprobs,
        num_prompt_logprobs=chat.num_prompt_logprobs,
        bad_token_sequences=tuple(bad_token_sequences(sampling.bad_words, model.tokenizer)),
        constraint=constraint,
        caller=current_caller(),
    )
    return Prepared(
        request, conversation.reading, constraint, grammar.field if grammar is not None else ""
    )


async def generate(model: ServedModel, prepared: Prepared) -> AsyncGenerator[TextDelta, None]:
    """The answers as they are generated, until the last of them has a finish reason.

    The first delta is empty: the request has been admitted.

    Raises:
        What `Engine.generate` raises, and DeadlinePassed when the deadline passes at any time.
        InvalidField: the request's grammar cannot be followed to the end of an answer.
    """
    request = prepared.request
    phases.ask(request)
    reserve_exactly([request], model.card.max_model_len)
    async with aclosing(model.engine.generate(request)) as outputs:
        await anext(outputs)
        yield TextDelta()
        answers = {i: _Answer(model, prepared) for i in range(request.n)}
        ended = None
        while answers:
            async with until(request.deadline):
                output = await outputs.asend(ended)
            ended = None
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
