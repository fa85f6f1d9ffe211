"""Prepares a checked request for the engine: tokenizes its prompts and compiles its grammar."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from service.deadline import deadline_scope
from service.domain.backend import CallContext, GenerationRequest, Prompt
from service.domain.chat import ChatRequest
from service.domain.completion import CompletionRequest
from service.domain.engine import Request
from service.domain.grammar import OutputConstraint
from service.domain.model import LocalModel, Tokenizer
from service.domain.sampling import SamplingParams
from service.errors import ContextLengthExceeded, InvalidField
from service.text import conversation as conversations
from service.text.conversation import cached_grammar, compile_grammar, response_grammar
from service.text.grammar_spec import GrammarSpec
from service.text.output_parser import OutputFormat
from service.text.prompt_length import least_num_tokens
from service.text.text_offsets import prompt_offsets


@dataclass(frozen=True, slots=True)
class Preparation:
    """A request that is ready for the engine.

    Attributes:
        engine_requests: One engine request for each of `prompts`.
        constraint: The grammar of each output; None if the request asks for none.
        constrained_field: The field of the request that asks for the constraint.
    """

    request: GenerationRequest
    prompts: tuple[Prompt, ...]
    engine_requests: tuple[Request, ...]
    output_format: OutputFormat
    constraint: OutputConstraint | None
    constrained_field: str

    @property
    def completion(self) -> CompletionRequest | None:
        """The request if it is a text completion."""
        return self.request if isinstance(self.request, CompletionRequest) else None


@dataclass(frozen=True, slots=True)
class _TokenizedRequest:
    """A request's prompts, the format of its outputs, and its grammar.

    Attributes:
        grammar: The description of the grammar; None if the request asks for none.
        constraint: The compiled grammar; None if it was not in the cache.
    """

    prompts: tuple[Prompt, ...]
    output_format: OutputFormat
    grammar: GrammarSpec | None
    constraint: OutputConstraint | None


async def prepare(request: GenerationRequest, model: LocalModel, call: CallContext) -> Preparation:
    """Tokenize a request's prompts and compile its grammar, off the event loop.

    Raises:
        InvalidField or a subclass: The first error found.
        DeadlinePassed: The deadline passed.
        PreparationFull: Too many requests are being prepared.
    """
    async with deadline_scope(call.deadline):
        tokenized = await call.workers.text(_tokenized, request, model)
        grammar, constraint = tokenized.grammar, tokenized.constraint
        if grammar is not None and constraint is None:
            constraint = await call.workers.grammar(grammar.length, compile_grammar, grammar, model)
    return Preparation(
        request,
        tokenized.prompts,
        tuple(_engine_requests(request, tokenized.prompts, model, constraint, call)),
        tokenized.output_format,
        constraint,
        "" if grammar is None else grammar.field,
    )


def _tokenized(request: GenerationRequest, model: LocalModel) -> _TokenizedRequest:
    """Render and tokenize the prompts. This takes long for long prompts."""
    if isinstance(request, ChatRequest):
        conversation = conversations.prepare(request, model)
        prompts: tuple[Prompt, ...] = (_chat_prompt(conversation.prompt_token_ids, request, model),)
        output_format, grammar = conversation.output_format, conversation.grammar
    else:
        prompts = tuple(
            _completion_prompt(prompt, f"{request.prompts_field}[{i}]", request, model)
            for i, prompt in enumerate(request.prompts)
        )
        output_format, grammar = OutputFormat(), None
        if request.response_format is not None:
            grammar = response_grammar(request.response_format, model)
    constraint = None if grammar is None else cached_grammar(grammar, model)
    return _TokenizedRequest(prompts, output_format, grammar, constraint)


def _engine_requests(
    request: GenerationRequest,
    prompts: Iterable[Prompt],
    model: LocalModel,
    constraint: OutputConstraint | None,
    call: CallContext,
) -> Iterator[Request]:
    sampling = request.sampling
    # An engine generates at least one token. If the request asks for none, that token is dropped.
    engine_sampling = replace(sampling, max_tokens=1) if sampling.max_tokens == 0 else sampling
    stop_token_ids = _stop_token_ids(sampling, model, constraint)
    bad_words = tuple(_bad_token_sequences(sampling.bad_words, model.tokenizer))
    for prompt in prompts:
        yield Request(
            prompt_token_ids=prompt.token_ids,
            sampling=engine_sampling,
            stop_token_ids=stop_token_ids,
            deadline=call.deadline,
            cache_salt=request.cache_salt,
            n=request.n,
            priority=call.priority,
            num_logprobs=request.num_logprobs,
            num_prompt_logprobs=request.num_prompt_logprobs,
            bad_token_sequences=bad_words,
            constraint=constraint,
            caller=call.caller,
        )


def _chat_prompt(token_ids: list[int], request: ChatRequest, model: LocalModel) -> Prompt:
    """Return the prompt of a chat.

    Raises:
        InvalidField: The prompt has a token outside of the model's vocabulary.
    """
    if token_ids and max(token_ids) >= model.vocab_size:
        message = f"The token {max(token_ids)} is not in the model's vocabulary."
        raise InvalidField(request.messages_field, message)
    return Prompt(token_ids=tuple(token_ids), num_tokens=len(token_ids))


def _completion_prompt(
    prompt: str | tuple[int, ...], field: str, request: CompletionRequest, model: LocalModel
) -> Prompt:
    """Return a prompt, tokenized and truncated.

    Raises:
        InvalidField: The prompt is empty, too long, or has a token outside of the vocabulary.
    """
    tokenizer, max_model_len = model.tokenizer, model.card.max_model_len
    length = request.truncate_prompt_tokens
    if isinstance(prompt, str):
        num_tokens = least_num_tokens(tokenizer, prompt, max_model_len) if length is None else 0
        if num_tokens:
            raise ContextLengthExceeded(num_tokens, max_model_len, field, "prompt")
        text = prompt
        ids = tuple(tokenizer.encode(prompt, add_special_tokens=request.adds_special_tokens))
    else:
        text, ids = tokenizer.decode(prompt, skip_special_tokens=False), prompt
    if length is not None and len(ids) > length:
        ids = ids[-length:]
        text = tokenizer.decode(ids, skip_special_tokens=False)
    if not ids:
        raise InvalidField(field, "The prompt is empty.")
    if max(ids) >= model.vocab_size:
        raise InvalidField(field, f"The token {max(ids)} is not in the model's vocabulary.")
    if len(ids) >= max_model_len:
        raise ContextLengthExceeded(len(ids), max_model_len, field, "prompt")
    has_offsets = request.is_echoed and request.num_logprobs is not None
    offsets = tuple(prompt_offsets(text, ids, tokenizer)) if has_offsets else ()
    return Prompt(text, ids, len(ids), offsets)


def _stop_token_ids(
    sampling: SamplingParams, model: LocalModel, constraint: OutputConstraint | None
) -> frozenset[int]:
    """Return the ids of the tokens that end an output.

    They are the request's stop tokens, and the model's end tokens unless the request ignores them.
    """
    if sampling.ignore_eos and constraint is None:
        return sampling.stop_token_ids
    # After a complete output, a grammar allows only a token that ends it.
    return sampling.stop_token_ids | model.eos_token_ids


def _bad_token_sequences(words: Iterable[str], tokenizer: Tokenizer) -> Iterator[tuple[int, ...]]:
    """Yield the tokens of each word at the start of a text and after a space."""
    for word in words:
        for text in {word, f" {word.lstrip()}"}:
            if token_ids := tokenizer.encode(text, add_special_tokens=False):
                yield tuple(token_ids)
