"""Computes a batch with a model and samples from what comes out."""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

from service.domain.engine import TokenLogprobs
from service.domain.sampling import SamplingParams
from service.engine.core import Computed, DeviceLost
from service.engine.kv_store import KVShape
from service.engine.layout import Layout
from service.engine.logits_processors import apply_rules
from service.engine.logprobs import token_logprobs
from service.engine.sampler import sample
from service.engine.scheduler import Batch, ScheduledSequence
from service.engine.sequence import Sequence
from service.engine.speculation import accept
from service.engine.token_rules import Forbidden, RowRules

# Rows of a prompt whose logits are in memory at once: 32 of 49152 numbers are 6 MB.
_PROMPT_ROWS = 32

_MAX_LOSS = 700.0  # exp of a larger number overflows a float

# More than a few would only take the cores from the model, which computes at the same time.
_GRAMMAR_THREADS = 2

_NOTHING = -1  # in the place of a token, where none may come


class Model(Protocol):
    """A decoder and the cache of its keys and values."""

    def forward(self, layout: Layout, rows: list[int]) -> Tensor:
        """Compute a step, and write its keys and values into the cache.

        Returns:
            What `logits` makes the logits after each of `rows` of: [len(rows), any size].
        """
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, vocab_size], float32: the logits of n of the rows that `forward` returned. They are
        the caller's own, to be written to."""
        ...


@dataclass(frozen=True, slots=True)
class QuantizationLoss:
    """Mean negative log likelihood of a text's tokens, in nats.

    Attributes:
        quantized: By the model as it is loaded.
        reference: By the checkpoint's weights without quantization.
    """

    quantized: float
    reference: float

    @property
    def cost(self) -> float:
        """Increase of the loss by quantization. NaN if the quantized loss is NaN."""
        return self.quantized - self.reference

    @property
    def perplexities(self) -> tuple[float, float]:
        """Perplexities: quantized, reference."""
        return _perplexity(self.quantized), _perplexity(self.reference)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model whose weights are in memory and whose KV cache is not allocated yet.

    Attributes:
        kv_shapes: One per layer.
        finish: Allocates the cache and returns the model. Called with num_blocks, block_size and
            max_model_len.
        description: Fields for the log.
        quantization_loss: None if it was not measured.
    """

    kv_shapes: list[KVShape]
    finish: Callable[[int, int, int], Model]
    description: dict[str, str]
    quantization_loss: QuantizationLoss | None = None


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, _MAX_LOSS))


@dataclass(frozen=True, slots=True)
class _Sampled:
    """A sequence that gets tokens, and where its rows are among all such rows."""

    scheduled: ScheduledSequence
    rows: range
    masks: Future[list[Forbidden]] | None  # of its grammar

    @property
    def sequence(self) -> Sequence:
        return self.scheduled.sequence


class ModelRunner:
    """`service.engine.core.Runner`: the model, and nothing of who or why.

    What grammars allow is found out on other threads while the model computes the step.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._grammars = ThreadPoolExecutor(_GRAMMAR_THREADS, thread_name_prefix="grammar")

    @torch.inference_mode()
    def run(self, batch: Batch) -> list[Computed]:
        """See `service.engine.core.Runner.run`."""
        try:
            return self._compute(batch)
        except torch.AcceleratorError as error:  # whatever it was, CUDA repeats it from now on
            raise DeviceLost(str(error)) from error

    def _compute(self, batch: Batch) -> list[Computed]:
        layout = Layout.of(batch)
        sampled = list(self._begin(batch))
        rows, prompt_rows = layout.sampled_rows(), layout.prompt_logprob_rows()
        hidden = self._model.forward(layout, rows + prompt_rows)
        answers = iter(self._sample(hidden[: len(rows)], sampled) if sampled else ())
        computed = [next(answers) if s.is_sampled else Computed() for s in batch.scheduled]
        if prompt_rows:
            told = iter(self._prompt_logprobs(hidden[len(rows) :], layout))
            return [
                replace(c, prompt_logprobs=tuple(islice(told, len(s.prompt_logprob_positions))))
                for c, s in zip(computed, layout.sequences, strict=True)
            ]
        return computed

    def _begin(self, batch: Batch) -> Iterator[_Sampled]:
        """Have the masks computed that this step's tokens need."""
        start = 0
        for s in batch.sampled:
            grammar, draft = s.sequence.grammar, s.draft_token_ids
            masks = None if grammar is None else self._grammars.submit(grammar.masks, draft)
            yield _Sampled(s, range(start, start + 1 + len(draft)), masks)
            start += 1 + len(draft)

    def _sample(self, hidden: Tensor, sampled: list[_Sampled]) -> list[Computed]:
        logits = self._model.logits(hidden)
        rules, errors = _rules(sampled)
        # Log probabilities are of the model's own logits, which the rules are about to change.
        is_told = any(s.sequence.request.num_logprobs is not None for s in sampled)
        own_logits = logits.clone() if rules and is_told else logits
        dead = apply_rules(logits, rules) if rules else ()
        token_ids = sample(logits, *_choices(sampled))
        for row in dead:
            token_ids[row] = _NOTHING
        answers = [_accepted(token_ids, s) for s in sampled]
        logprobs = _logprobs(own_logits, sampled, answers) if is_told else [()] * len(sampled)
        return [
            Computed(*answer) if i not in errors else Computed(error=errors[i])
            for i, answer in enumerate(zip(answers, logprobs, strict=True))
        ]

    def _prompt_logprobs(self, hidden: Tensor, layout: Layout) -> Iterator[TokenLogprobs]:
        """Of the tokens behind `layout.prompt_logprob_rows`, a block of logits at a time."""
        targets = layout.prompt_logprob_targets()
        for start in range(0, len(targets), _PROMPT_ROWS):
            block = targets[start : start + _PROMPT_ROWS]
            logits = self._model.logits(hidden[start : start + _PROMPT_ROWS])
            yield from token_logprobs(
                logits, [(row, token_id, num_top) for row, (token_id, num_top) in enumerate(block)]
            )


def _rules(sampled: list[_Sampled]) -> tuple[dict[int, RowRules], dict[int, Exception]]:
    """The rules by row, and by sequence the errors of those whose grammar fails."""
    rules: dict[int, RowRules] = {}
    errors: dict[int, Exception] = {}
    for i, s in enumerate(sampled):
        if s.sequence.rules is None:
            continue
        try:
            masks = None if s.masks is None else s.masks.result()
        except Exception as error:  # somebody else's code
            errors[i] = error
            continue
        rows = s.sequence.rules.rows(s.scheduled.draft_token_ids, masks)
        rules.update(zip(s.rows, rows, strict=False))  # none behind the end of a draft
    return rules, errors


def _choices(sampled: list[_Sampled]) -> tuple[list[SamplingParams], list[float]]:
    """By which parameters and with which draw each row is sampled."""
    params: list[SamplingParams] = []
    draws: list[float] = []
    for s in sampled:
        sampling = s.sequence.request.sampling
        for position in range(
            s.sequence.num_output_tokens, s.sequence.num_output_tokens + len(s.rows)
        ):
            params.append(sampling)
            draws.append(0.0 if sampling.is_greedy else s.sequence.draw(position))
    return params, draws


def _accepted(token_ids: list[int], s: _Sampled) -> tuple[int, ...]:
    """What a sequence gets of the tokens sampled in its rows."""
    num_rows = len(s.rows)
    if s.masks is not None and s.masks.exception() is None:
        num_rows = len(s.masks.result())  # behind these nobody knows what may come
    draft = s.scheduled.draft_token_ids[: num_rows - 1]
    accepted = accept(token_ids[s.rows.start : s.rows.start + num_rows], draft)
    return accepted[:-1] if accepted[-1] == _NOTHING else accepted


def _logprobs(
    logits: Tensor, sampled: list[_Sampled], answers: list[tuple[int, ...]]
) -> list[tuple[TokenLogprobs, ...]]:
    """Of the tokens of those who ask for them."""
    counts = [
        0 if s.sequence.request.num_logprobs is None else len(answer)
        for s, answer in zip(sampled, answers, strict=True)
    ]
    wanted = [
        (row, token_id, s.sequence.request.num_logprobs or 0)
        for s, answer, count in zip(sampled, answers, counts, strict=True)
        for row, token_id in zip(s.rows[:count], answer[:count], strict=True)
    ]
    told = iter(token_logprobs(logits, wanted))
    return [tuple(islice(told, count)) for count in counts]
