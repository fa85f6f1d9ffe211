"""From a checked completion request to the pieces of its choices: prompts, tokens, text."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from service.errors import InvalidField
from service.rpc import phases
from service.rpc.caller import current_caller, reserve_exactly
from service.rpc.completion_request import CompletionRequest, context_length_exceeded
from service.rpc.deadline import until
from service.rpc.generation import (
    bad_token_sequences,
    check_form,
    compiling,
    stop_token_ids,
    tokenizing,
)
from service.rpc.merged import Merged
from service.text.answer import AnswerText, TextDelta
from service.text.conversation import compile_grammar, form_grammar
from service.types import (
    AnswerConstraint,
    FinishReason,
    Request,
    SamplingParams,
    ServedModel,
    Tokenizer,
    TokenLogprobs,
    TokenOutput,
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as text and as the tokens that the model reads."""

    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ChoiceDelta:
    """The next piece of a choice of prompt `prompt_index`.

    `logprobs` are those of the `text.num_tokens` that were generated for it.
    """

    prompt_index: int
    text: TextDelta
    logprobs: tuple[TokenLogprobs, ...] = ()


async def read_prompts(
    request: CompletionRequest, model: ServedModel, deadline: float
) -> list[Prompt]:
    """Tokenize what is text, off the event loop: a long one takes a while.

    Raises:
        InvalidField: a prompt is empty or too long, or holds a token that the model does not know.
        DeadlinePassed
    """
    async with until(deadline):
        prompts = await asyncio.get_running_loop().run_in_executor(
            tokenizing, _read_prompts, request, model.tokenizer
        )
    for i, prompt in enumerate(prompts):
        ids, path = prompt.token_ids, f"prompts[{i}]"
        if not ids:
            raise InvalidField(path, "The prompt is empty.")
        if max(ids) >= model.vocab_size:
            raise InvalidField(path, f"The model does not know the token {max(ids)}.")
        if len(ids) >= model.card.max_model_len:
            raise context_length_exceeded(len(ids), model.card.max_model_len, path)
    return prompts


async def compile_form(
    request: CompletionRequest, model: ServedModel, deadline: float
) -> AnswerConstraint | None:
    """The grammar that the answers must follow, compiled off the event loop; None if there is none.

    Raises:
        InvalidField: it cannot be compiled.
        DeadlinePassed
    """
    if request.response_format is None:
        return None
    grammar = form_grammar(request.response_format, model)
    async with until(deadline):
        return await asyncio.get_running_loop().run_in_executor(
            compiling, compile_grammar, grammar, model
        )


def engine_requests(
    request: CompletionRequest,
    prompts: Sequence[Prompt],
    model: ServedModel,
    constraint: AnswerConstraint | None,
    deadline: float,
) -> list[Request]:
    """What the engine is asked, for each prompt.

    An engine generates at least one token; where none is wanted, that one is thrown away.
    """
    sampling = request.sampling
    ends = stop_token_ids(sampling, model, constraint)
    bad_words = tuple(bad_token_sequences(sampling.bad_words, model.tokenizer))
    return [
        Request(
            prompt_token_ids=prompt.token_ids,
            sampling=replace(sampling, max_tokens=sampling.max_tokens or 1),
            stop_token_ids=ends,
            deadline=deadline,
            cache_salt=request.cache_salt,
            n=request.n,
            priority=request.priority,
            num_logprobs=request.num_logprobs,
            num_prompt_logprobs=request.num_prompt_logprobs,
            bad_token_sequences=bad_words,
            constraint=constraint,
            caller=current_caller(),
        )
        for prompt in prompts
    ]


async def generate(
    model: ServedModel,
    requests: Sequence[Request],
    sampling: SamplingParams,
    constraint: AnswerConstraint | None,
) -> AsyncGenerator[ChoiceDelta | None, None]:
    """The choices' pieces as they are generated. The first item is None: all are admitted.

    Raises:
        What `Engine.generate` raises, and DeadlinePassed when the deadline passes at any time.
        InvalidField: the grammar cannot be followed to the end of an answer.
    """
    answers = [
        _PromptAnswer(i, request.n, model.tokenizer, sampling, constraint)
        for i, request in enumerate(requests)
    ]
    phases.ask(*requests)
    reserve_exactly(requests, model.card.max_model_len)
    sources = [model.engine.generate(request) for request in requests]
    async with aclosing(Merged(sources)) as outputs:
        for source in sources:
            await anext(source)
        yield None
        ended = None
        while not all(answer.is_finished for answer in answers):
            async with until(requests[0].deadline):
                place, output = await outputs.next(ended)
            delta, ended = answers[place].push(output), None
            if answers[place].is_finished:
                await outputs.drop(place)
            elif delta.text.finish_reason is not None:
                ended = output.index  # by a stop string, perhaps, which no engine knows
            yield delta


def _read_prompts(request: CompletionRequest, tokenizer: Tokenizer) -> list[Prompt]:
    prompts = [_read_prompt(prompt, request, tokenizer) for prompt in request.prompts]
    length = request.truncate_prompt_tokens
    if length is None:
        return prompts
    return [
        _of_tokens(prompt.token_ids[-length:], tokenizer)
        if len(prompt.token_ids) > length
        else prompt
        for prompt in prompts
    ]


def _read_prompt(
    prompt: str | tuple[int, ...], request: CompletionRequest, tokenizer: Tokenizer
) -> Prompt:
    if isinstance(prompt, str):
        ids = tokenizer.encode(prompt, add_special_tokens=request.adds_special_tokens)
        return Prompt(prompt, tuple(ids))
    return _of_tokens(prompt, tokenizer)


def _of_tokens(token_ids: tuple[int, ...], tokenizer: Tokenizer) -> Prompt:
    return Prompt(tokenizer.decode(token_ids, skip_special_tokens=False), token_ids)


class _PromptAnswer:
    """The choices of one prompt."""

    def __init__(
        self,
        prompt_index: int,
        n: int,
        tokenizer: Tokenizer,
        sampling: SamplingParams,
        constraint: AnswerConstraint | None,
    ) -> None:
        self._prompt_index = prompt_index
        self._constraint = constraint
        self._token_ids: dict[int, list[int]] = {index: [] for index in range(n)}
        self._is_scored_only = sampling.max_tokens == 0
        self._open = {index: AnswerText(tokenizer, sampling) for index in range(n)}

    @property
    def is_finished(self) -> bool:
        return not self._open

    def push(self, output: TokenOutput) -> ChoiceDelta:
        if self._is_scored_only:
            output = replace(output, token_ids=(), finish_reason=FinishReason.LENGTH, logprobs=())
        text = self._open[output.index].push(output)
        token_ids = self._token_ids[output.index]
        token_ids += output.token_ids
        if text.finish_reason is not None:
            check_form(self._constraint, "response_format", token_ids, output)
            del self._open[output.index]
        return ChoiceDelta(self._prompt_index, text, output.logprobs[: text.num_tokens])
