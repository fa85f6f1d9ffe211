"""The `ChatBackend` over an engine in this process."""

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AbstractContextManager, aclosing
from dataclasses import replace
from functools import partial

from service.deadline import deadline_of_waits
from service.domain.backend import (
    BackendLoad,
    CallContext,
    DecodedLogprob,
    GenerationRequest,
    ModelSpec,
    Prompt,
    ServedModel,
    TextDelta,
)
from service.domain.engine import Caller, TokenOutput, count_logprobs
from service.domain.model import LocalModel, ReasoningFormat, Tokenizer
from service.generation.local_decisions import LocalDecisions, can_decide
from service.generation.merged_streams import MergedStreams
from service.generation.preparation import Preparation, prepare
from service.generation.request_fields import RESPONSE_FORMATS, unsupported_fields
from service.generation.sequence_output import SequenceOutput, first_prompt_logprob
from service.text.prompt import prompt_token_ids

# An output with more log probabilities than this is converted to deltas off the event loop. Each
# log probability takes about 1 us.
MAX_LOGPROBS_ON_LOOP = 500


class LocalBackend:
    """`service.domain.backend.ChatBackend` for a model in this process."""

    def __init__(self, model: LocalModel) -> None:
        """Create the backend of a model whose engine has been started.

        Raises:
            ModelLoadError: The engine's capabilities are invalid.
        """
        self._model = model
        self._unsupported_fields = unsupported_fields(model.engine.capabilities)
        if model.grammars is None:
            self._unsupported_fields |= frozenset(RESPONSE_FORMATS)

    @property
    def spec(self) -> ModelSpec:
        model = self._model
        capabilities = model.engine.capabilities
        return ModelSpec(
            model.card.max_model_len,
            model.engine.max_request_sequences,
            model.sampling_defaults,
            model.vocab_size,
            model.tokenizer.max_token_chars,
            unsupported_fields=self._unsupported_fields,
            max_logprobs=capabilities.max_logprobs,
            is_batch_invariant=capabilities.is_batch_invariant,
            has_reasoning=model.formats.reasoning is not ReasoningFormat.NONE,
        )

    @property
    def tokenizer(self) -> Tokenizer:
        return self._model.tokenizer

    def load(self) -> BackendLoad:
        stats = self._model.engine.stats()
        return BackendLoad(stats.num_running + stats.num_waiting, stats.max_num_seqs)

    def reserve(self, caller: Caller, num_sequences: int) -> AbstractContextManager[None]:
        return self._model.engine.reserve(caller, num_sequences)

    async def prepare(self, request: GenerationRequest, call: CallContext) -> "LocalGeneration":
        preparation = await prepare(request, self._model, call)
        return LocalGeneration(self._model, preparation, call)


class LocalGeneration:
    """`service.domain.backend.Generation` of a request to the engine."""

    def __init__(self, model: LocalModel, preparation: Preparation, call: CallContext) -> None:
        self._model = model
        self._preparation = preparation
        self._call = call

    @property
    def prompts(self) -> Sequence[Prompt]:
        return self._preparation.prompts

    async def deltas(self) -> AsyncGenerator[TextDelta, None]:
        """See `service.domain.backend.Generation.deltas`."""
        engine, requests = self._model.engine, self._preparation.engine_requests
        prompts = [_PromptOutput(self._model, self._preparation, i) for i in range(len(requests))]
        sources = [engine.generate(request, is_reserved=True) for request in requests]
        async with aclosing(MergedStreams(sources)) as outputs:
            timings = [(await anext(source)).timings for source in sources]
            yield TextDelta()
            for index, admitted in enumerate(timings):
                yield TextDelta(prompt_index=index, timings=admitted)
            ended = None
            num_open = len(prompts)
            with deadline_of_waits(self._call.deadline) as limit:
                while num_open:
                    with limit:
                        index, output = await outputs.next(ended)
                    prompt = prompts[index]
                    if _is_short(output):
                        deltas = prompt.push(output)
                    else:
                        deltas = await self._call.workers.text(prompt.push, output)
                    # If a stop string has ended the sequence, the engine must end it too.
                    ended = None if deltas[-1].finish_reason is None else output.index
                    if prompt.is_finished:
                        await outputs.drop(index)
                        num_open -= 1
                        ended = None
                    for delta in deltas:
                        yield delta


class _PromptOutput:
    """Converts the outputs of the sequences of one prompt to deltas."""

    def __init__(self, model: LocalModel, preparation: Preparation, prompt_index: int) -> None:
        request = preparation.engine_requests[prompt_index]
        self._prompt_index = prompt_index
        self._open = {
            index: SequenceOutput(model, preparation, prompt_index) for index in range(request.n)
        }
        self._first_logprob: DecodedLogprob | None = None
        self._is_single_token = len(request.prompt_token_ids) == 1
        if request.num_prompt_logprobs is not None and request.prompt_token_ids:
            self._first_logprob = first_prompt_logprob(model, request.prompt_token_ids[0])

    @property
    def is_finished(self) -> bool:
        return not self._open

    def push(self, output: TokenOutput) -> list[TextDelta]:
        """Return the deltas of an output of one of the sequences."""
        if output.is_progress:
            return [TextDelta(prompt_index=self._prompt_index, timings=output.timings)]
        deltas = self._open[output.index].push(output)
        if self._first_logprob is not None:
            deltas = list(self._with_first_logprob(deltas))
        if deltas[-1].finish_reason is not None:
            del self._open[output.index]
        return deltas

    def _with_first_logprob(self, deltas: list[TextDelta]) -> Iterator[TextDelta]:
        """Yield the deltas, with an entry for the prompt's first token before its other entries.

        For a prompt of one token the engine returns no log probabilities. Then the first delta has
        the entry.
        """
        for delta in deltas:
            first = self._first_logprob
            if first is not None and (delta.prompt_logprobs or self._is_single_token):
                self._first_logprob = None
                yield replace(delta, prompt_logprobs=(first, *delta.prompt_logprobs))
            else:
                yield delta


def _is_short(output: TokenOutput) -> bool:
    """Return True if the output may be converted to deltas on the event loop."""
    has_logprobs = output.logprobs or output.prompt_logprobs
    return (
        not has_logprobs
        or count_logprobs(output.logprobs, output.prompt_logprobs) <= MAX_LOGPROBS_ON_LOOP
    )


def locally_served(model: LocalModel) -> ServedModel:
    """Return the `ServedModel` for a model in this process."""
    backend = LocalBackend(model)
    return ServedModel(
        model.card,
        backend,
        backend,
        decisions=LocalDecisions(model) if can_decide(model.engine.capabilities) else None,
        local=model,
        encode_chat=partial(prompt_token_ids, model),
    )
