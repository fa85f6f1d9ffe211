"""The `DecisionBackend` over an engine in this process."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from service.domain.backend import CallContext
from service.domain.decisions import DecisionRequest, NoteProgress, Question, ScoredQuestion
from service.domain.engine import EngineCapabilities, EngineTimings, Request
from service.domain.model import LocalModel
from service.domain.sampling import SamplingParams
from service.errors import InvalidField, StepFailed
from service.generation.option_tree import EqualOptions, OptionTree, Path
from service.text.decision_prompt import question_prompt

# Maximum number of tokens of all options of a question, shared beginnings counted once. Each is
# scored by a request to the engine.
MAX_SCORED_TOKENS = 4096

# An engine without one of these cannot report the log probability of a token that is given to it.
_NEEDED = frozenset(("allowed_token_ids", "num_logprobs"))


def can_decide(capabilities: EngineCapabilities) -> bool:
    """Return True if an engine can score given tokens."""
    return not _NEEDED & capabilities.unsupported


class LocalDecisions:
    """`service.domain.backend.DecisionBackend` for a model in this process.

    A token of an option is scored by a request that generates one token: the prompt is that of the
    question and the option's tokens so far, and only the scored token is allowed. The engine
    reports its log probability among all tokens, as before any option. All requests of a question
    share its prompt, and all questions share the conversation, in the prefix cache.
    """

    def __init__(self, model: LocalModel) -> None:
        self._model = model

    async def decide(
        self, request: DecisionRequest, call: CallContext, num_sequences: int, note: NoteProgress
    ) -> Sequence[ScoredQuestion]:
        """See `service.domain.backend.DecisionBackend.decide`."""
        scoring = _Scoring(self._model, request, call, asyncio.Semaphore(num_sequences), note)
        # The first question puts the conversation into the prefix cache for the others.
        first = await scoring.question(0)
        pending = iter(range(1, len(request.questions)))
        others: dict[int, ScoredQuestion] = {}

        async def score_next() -> None:
            for index in pending:
                others[index] = await scoring.question(index)

        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(min(num_sequences, len(request.questions) - 1)):
                    tasks.create_task(score_next())
        except ExceptionGroup as errors:
            raise _first(errors) from None
        return [first, *(others[index] for index in sorted(others))]


@dataclass(frozen=True, slots=True)
class _Scoring:
    """The scoring of one request's questions.

    Attributes:
        slots: Limits the requests to the engine at a time.
    """

    model: LocalModel
    request: DecisionRequest
    call: CallContext
    slots: asyncio.Semaphore
    note: NoteProgress

    async def question(self, index: int) -> ScoredQuestion:
        """Score the options of a question."""
        question = self.request.questions[index]
        prompt, tree = await self.call.workers.text(self._prepared, question)
        progress = _Progress(index, len(prompt), self.note)
        # The first request puts the prompt into the prefix cache for the others.
        first, *others = tree.edges
        logprobs = {first: await self._logprob(prompt, first, progress)}
        num_cached_tokens = progress.num_cached_tokens
        try:
            async with asyncio.TaskGroup() as tasks:
                scores = {
                    edge: tasks.create_task(self._logprob(prompt, edge, progress))
                    for edge in others
                }
        except ExceptionGroup as errors:
            raise _first(errors) from None
        logprobs |= {edge: score.result() for edge, score in scores.items()}
        options = tree.scored(logprobs)
        return ScoredQuestion(options, len(prompt), num_cached_tokens, len(tree.edges))

    def _prepared(self, question: Question) -> tuple[Path, OptionTree]:
        """Tokenize a question.

        Raises:
            InvalidField or a subclass.
        """
        prompt = question_prompt(self.request.messages, question, self.model)
        field = question.options_field
        try:
            tree = OptionTree(prompt.forms)
        except EqualOptions as equal:
            raise InvalidField(
                f"{field}[{equal.second}]",
                f"This model's tokenizer does not distinguish the option from that at "
                f"{equal.first}.",
            ) from None
        if len(tree.edges) > MAX_SCORED_TOKENS:
            raise InvalidField(
                field,
                f"The options of a question have at most {MAX_SCORED_TOKENS} tokens together, not "
                f"{len(tree.edges)}.",
            )
        return prompt.token_ids, tree

    async def _logprob(self, prompt: Path, edge: Path, progress: "_Progress") -> float:
        """Return the log probability of an edge's last token after the prompt and the others."""
        engine, call = self.model.engine, self.call
        request = Request(
            prompt_token_ids=(*prompt, *edge[:-1]),
            sampling=SamplingParams(
                temperature=0.0, max_tokens=1, allowed_token_ids=frozenset(edge[-1:])
            ),
            deadline=call.deadline,
            cache_salt=self.request.cache_salt,
            priority=call.priority,
            num_logprobs=0,
            caller=call.caller,
        )
        async with (
            self.slots,
            aclosing(engine.generate(request, is_reserved=True)) as outputs,
        ):
            async for output in outputs:
                progress.note(output.timings)
                if output.logprobs:
                    progress.note_scored(output.num_cached_tokens)
                    return output.logprobs[0].logprob
        raise StepFailed("The engine returned no log probability of a token.")


class _Progress:
    """The progress of one question."""

    def __init__(self, index: int, num_prompt_tokens: int, note: NoteProgress) -> None:
        self.num_cached_tokens = 0
        self._index = index
        self._num_prompt_tokens = num_prompt_tokens
        self._note = note
        self._timings = EngineTimings()

    def note(self, timings: EngineTimings | None) -> None:
        """Note the timings of one request to the engine."""
        if timings is not None and self._timings.scheduled_s is None:
            self._report(replace(timings, num_tokens=self._timings.num_tokens))

    def note_scored(self, num_cached_tokens: int) -> None:
        """Note that a token has been scored, with the prompt tokens that were in the cache."""
        self.num_cached_tokens = num_cached_tokens
        self._report(replace(self._timings, num_tokens=self._timings.num_tokens + 1))

    def _report(self, timings: EngineTimings) -> None:
        self._timings = timings
        self._note(self._index, self._num_prompt_tokens, timings)


def _first(errors: ExceptionGroup[Exception]) -> Exception:
    """Return the first exception in a group."""
    return errors.exceptions[0]
