"""From a checked completion request to the pieces of its choices: prompts, tokens, text."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from chatrpc.v1 import completion_pb2
from service.domain.engine import FinishReason, Request, TokenLogprobs, TokenOutput
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
from service.rpc.decode import chat
from service.rpc.decode.completion import (
    CompletionRequest,
    completion_request,
    context_length_exceeded,
)
from service.rpc.generation import bad_token_sequences, check_form, stop_token_ids
from service.rpc.merged_streams import Merged
from service.text.conversation import cached_grammar, compile_grammar, form_grammar
from service.text.grammar_spec import AnswerGrammar
from service.text.output_text import AnswerText, TextDelta
from service.text.prompt_length import least_num_tokens


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


@dataclass(frozen=True, slots=True)
class Prepared:
    """A text completion that is ready for the engine: a request for each of its prompts."""

    completion: CompletionRequest
    prompts: list[Prompt]
    constraint: AnswerConstraint | None
    requests: list[Request]


async def prepare(
    params: completion_pb2.CompletionParams, model: ServedModel, deadline: float, pools: WorkPools
) -> Prepared:
    """Check a request, tokenize its prompts, compile its grammar.

    Args:
        deadline: Of `time.monotonic()`; the caller does not wait any longer.

    Raises:
        InvalidField, or one of its kinds: The first mistake found.
        DeadlinePassed, PreparationFull
    """
    priority = chat.priority(params, current_caller())
    async with until(deadline):
        completion, prompts, grammar, constraint = await pools.text(_read, params, model)
        if grammar is not None and constraint is None:
            constraint = await pools.grammar(grammar.length, compile_grammar, grammar, model)
    requests = _engine_requests(completion, prompts, model, constraint, priority, deadline)
    return Prepared(completion, prompts, constraint, requests)


def _read(
    params: completion_pb2.CompletionParams, model: ServedModel
) -> tuple[CompletionRequest, list[Prompt], AnswerGrammar | None, AnswerConstraint | None]:
    """The request checked, its prompts, its grammar, and its constraint if that is cached.

    Runs on a thread: long prompts take a while.
    """
    completion = completion_request(params, model)
    prompts = [
        _read_prompt(prompt, f"prompts[{i}]", completion, model)
        for i, prompt in enumerate(completion.prompts)
    ]
    if completion.response_format is None:
        return completion, prompts, None, None
    grammar = form_grammar(completion.response_format, model)
    return completion, prompts, grammar, cached_grammar(grammar, model)


def _engine_requests(
    request: CompletionRequest,
    prompts: Sequence[Prompt],
    model: ServedModel,
    constraint: AnswerConstraint | None,
    priority: int,
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
            priority=priority,
            num_logprobs=request.num_logprobs,
            num_prompt_logprobs=request.num_prompt_logprobs,
            bad_token_sequences=bad_words,
            constraint=constraint,
            caller=current_caller(),
        )
        for prompt in prompts
    ]


async def generate(
    model: ServedModel, prepared: Prepared
) -> AsyncGenerator[ChoiceDelta | None, None]:
    """The choices' pieces as they are generated. The first item is None: all are admitted.

    Raises:
        What `Engine.generate` raises, and DeadlinePassed when the deadline passes at any time.
        InvalidField: the grammar cannot be followed to the end of an answer.
    """
    requests, sampling = prepared.requests, prepared.completion.sampling
    answers = [
        _PromptAnswer(i, request.n, model.tokenizer, sampling, prepared.constraint)
        for i, request in enumerate(requests)
    ]
    note_requests(requests)
    reserve_exactly(requests, model.card.max_model_len)
    sources = [model.engine.generate(request, is_reserved=True) for request in requests]
    async with aclosing(Merged(sources)) as outputs:
        for place, source in enumerate(sources):
            note_timings(place, (await anext(source)).timings)
        yield None
        ended = None
        while not all(answer.is_finished for answer in answers):
            async with until(requests[0].deadline):
                place, output = await outputs.next(ended)
            ended = None
            note_timings(place, output.timings)
            if output.is_progress:
                continue
            delta = answers[place].push(output)
            if answers[place].is_finished:
                await outputs.drop(place)
            elif delta.text.finish_reason is not None:
                ended = output.index  # by a stop string, perhaps, which no engine knows
            yield delta


def _read_prompt(
    prompt: str | tuple[int, ...], path: str, completion: CompletionRequest, model: ServedModel
) -> Prompt:
    """A prompt, tokenized and cut off if need be.

    Raises:
        InvalidField: It is empty, too long, or has a token that the model does not know.
    """
    tokenizer, max_model_len = model.tokenizer, model.card.max_model_len
    length = completion.truncate_prompt_tokens
    if isinstance(prompt, str):
        num_tokens = least_num_tokens(tokenizer, prompt, max_model_len) if length is None else 0
        if num_tokens:
            raise context_length_exceeded(num_tokens, max_model_len, path)
        ids = tokenizer.encode(prompt, add_special_tokens=completion.adds_special_tokens)
        read = Prompt(prompt, tuple(ids))
    else:
        read = _of_tokens(prompt, tokenizer)
    if length is not None and len(read.token_ids) > length:
        read = _of_tokens(read.token_ids[-length:], tokenizer)
    if not read.token_ids:
        raise InvalidField(path, "The prompt is empty.")
    if max(read.token_ids) >= model.vocab_size:
        raise InvalidField(path, f"The model does not know the token {max(read.token_ids)}.")
    if len(read.token_ids) >= max_model_len:
        raise context_length_exceeded(len(read.token_ids), max_model_len, path)
    return read


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
