"""Computes a batch with a model and samples the next tokens."""

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

# Rows of prompts whose logits are in memory at once: 32 rows of 49152 numbers take 6 MB.
_PROMPT_ROWS = 32

_MAX_LOSS = 700.0  # exp of a larger number overflows a float

# More threads would take cores from the model, which computes at the same time.
_GRAMMAR_THREADS = 2

_NO_TOKEN = -1  # instead of a token id, for a row in which no token is allowed


class Model(Protocol):
    """A decoder and its KV cache."""

    def forward(self, layout: Layout, rows: list[int]) -> Tensor:
        """Compute a step, and write its keys and values into the cache.

        Args:
            rows: The rows of the step whose output is needed.

        Returns:
            The input of `logits` for these rows: [len(rows), any size].
        """
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits, [n, vocab_size] in float32, of n rows that `forward` returned.

        The caller may write to them.
        """
        ...


@dataclass(frozen=True, slots=True)
class QuantizationLoss:
    """Mean negative log likelihood of a text's tokens, in nats.

    Attributes:
        quantized: The loss of the model as it is loaded.
        reference: The loss with the checkpoint's weights without quantization.
    """

    quantized: float
    reference: float

    @property
    def cost(self) -> float:
        """Increase of the loss by quantization. NaN if the quantized loss is NaN."""
        return self.quantized - self.reference

    @property
    def perplexities(self) -> tuple[float, float]:
        """The perplexity of the quantized model, and that of the reference."""
        return _perplexity(self.quantized), _perplexity(self.reference)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model whose weights are in memory and whose KV cache is not allocated yet.

    Attributes:
        kv_shapes: The cache shape of each layer.
        finish: Allocates the cache and returns the model. Its arguments are num_blocks, block_size
            and max_model_len.
        description: Fields for the log.
        quantization_loss: The measured losses; None if they were not measured.
    """

    kv_shapes: list[KVShape]
    finish: Callable[[int, int, int], Model]
    description: dict[str, str]
    quantization_loss: QuantizationLoss | None = None

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of one token's keys and values in all layers."""
        return sum(shape.bytes_per_token for shape in self.kv_shapes)


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, _MAX_LOSS))


@dataclass(frozen=True, slots=True)
class _Sampled:
    """A sequence for which tokens are sampled.

    `rows` are the indices of its rows among all sampled rows. `masks` come from its grammar.
    """

    scheduled: ScheduledSequence
    rows: range
    masks: Future[list[Forbidden]] | None

    @property
    def sequence(self) -> Sequence:
        return self.scheduled.sequence


class ModelRunner:
    """`service.engine.core.Runner` over a model.

    The masks of grammars are computed on other threads while the model computes the step.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._grammars = ThreadPoolExecutor(_GRAMMAR_THREADS, thread_name_prefix="grammar")

    @torch.inference_mode()
    def run(self, batch: Batch) -> list[Computed]:
        """See `service.engine.core.Runner.run`."""
        try:
            return self._compute(batch)
        except torch.AcceleratorError as error:  # CUDA raises the same error in each later call
            raise DeviceLost(str(error)) from error
        except torch.OutOfMemoryError as error:
            reason = str(error)
        # The error is gone, and with it the tensors of the failed step. The memory that torch keeps
        # for later tensors may be in pieces that are too small for them.
        torch.cuda.empty_cache()
        raise MemoryError(reason)

    def _compute(self, batch: Batch) -> list[Computed]:
        layout = Layout.of(batch)
        sampled = list(self._begin(batch))
        rows, prompt_rows = layout.sampled_rows(), layout.prompt_logprob_rows()
        hidden = self._model.forward(layout, rows + prompt_rows)
        results = iter(self._sample(hidden[: len(rows)], sampled) if sampled else ())
        computed = [next(results) if s.is_sampled else Computed() for s in batch.scheduled]
        if prompt_rows:
            logprobs = iter(self._prompt_logprobs(hidden[len(rows) :], layout))
            return [
                replace(c, prompt_logprobs=tuple(islice(logprobs, len(s.prompt_logprob_positions))))
                for c, s in zip(computed, layout.sequences, strict=True)
            ]
        return computed

    def _begin(self, batch: Batch) -> Iterator[_Sampled]:
        """Start to compute the masks of this step, and yield each sampled sequence."""
        start = 0
        for s in batch.sampled:
            grammar, draft = s.sequence.grammar, s.draft_token_ids
            masks = None if grammar is None else self._grammars.submit(grammar.masks, draft)
            yield _Sampled(s, range(start, start + 1 + len(draft)), masks)
            start += 1 + len(draft)

    def _sample(self, hidden: Tensor, sampled: list[_Sampled]) -> list[Computed]:
        logits = self._model.logits(hidden)
        rules, errors = _rules(sampled)
        # Log probabilities are those of the model's own logits, and the rules change the logits.
        has_logprobs = any(s.sequence.request.num_logprobs is not None for s in sampled)
        own_logits = logits.clone() if rules and has_logprobs else logits
        rows_without_token = apply_rules(logits, rules) if rules else ()
        token_ids = sample(logits, *_sampling(sampled))
        for row in rows_without_token:
            token_ids[row] = _NO_TOKEN
        accepted = [_accepted(token_ids, s) for s in sampled]
        logprobs = _logprobs(own_logits, sampled, accepted) if has_logprobs else [()] * len(sampled)
        return [
            Computed(*result) if i not in errors else Computed(error=errors[i])
            for i, result in enumerate(zip(accepted, logprobs, strict=True))
        ]

    def _prompt_logprobs(self, hidden: Tensor, layout: Layout) -> Iterator[TokenLogprobs]:
        """Yield the log probability of the token after each of `layout.prompt_logprob_rows`.

        Args:
            hidden: The output of `Model.forward` for these rows.
        """
        targets = layout.prompt_logprob_targets()
        for start in range(0, len(targets), _PROMPT_ROWS):
            block = targets[start : start + _PROMPT_ROWS]
            logits = self._model.logits(hidden[start : start + _PROMPT_ROWS])
            yield from token_logprobs(
                logits, [(row, token_id, num_top) for row, (token_id, num_top) in enumerate(block)]
            )


def _rules(sampled: list[_Sampled]) -> tuple[dict[int, RowRules], dict[int, Exception]]:
    """Return the rules by row, and the errors of grammars by index in `sampled`."""
    rules: dict[int, RowRules] = {}
    errors: dict[int, Exception] = {}
    for i, s in enumerate(sampled):
        if s.sequence.rules is None:
            continue
        try:
            masks = None if s.masks is None else s.masks.result()
        except Exception as error:  # a library's code, which may raise anything
            errors[i] = error
            continue
        rows = s.sequence.rules.rows(s.scheduled.draft_token_ids, masks)
        rules.update(zip(s.rows, rows, strict=False))  # fewer rules if the masks end a draft early
    return rules, errors


def _sampling(sampled: list[_Sampled]) -> tuple[list[SamplingParams], list[float]]:
    """Return the sampling parameters and the draw of each row."""
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
    """Return the accepted tokens of a sequence.

    Args:
        token_ids: The sampled tokens of all rows.
    """
    num_rows = len(s.rows)
    if s.masks is not None and s.masks.exception() is None:
        num_rows = len(s.masks.result())  # later rows were sampled without a mask
    draft = s.scheduled.draft_token_ids[: num_rows - 1]
    accepted = accept(token_ids[s.rows.start : s.rows.start + num_rows], draft)
    return accepted[:-1] if accepted[-1] == _NO_TOKEN else accepted


def _logprobs(
    logits: Tensor, sampled: list[_Sampled], accepted: list[tuple[int, ...]]
) -> list[tuple[TokenLogprobs, ...]]:
    """Return the log probabilities of the accepted tokens; empty for requests without them."""
    counts = [
        0 if s.sequence.request.num_logprobs is None else len(token_ids)
        for s, token_ids in zip(sampled, accepted, strict=True)
    ]
    tokens = [
        (row, token_id, s.sequence.request.num_logprobs or 0)
        for s, token_ids, count in zip(sampled, accepted, counts, strict=True)
        for row, token_id in zip(s.rows[:count], token_ids[:count], strict=True)
    ]
    logprobs = iter(token_logprobs(logits, tokens))
    return [tuple(islice(logprobs, count)) for count in counts]
