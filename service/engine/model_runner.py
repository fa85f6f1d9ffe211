"""Computes a batch with a model and samples the next tokens."""

import ctypes
import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.domain.sampling import SamplingParams
from service.engine.batch import Batch, ScheduledSequence
from service.engine.core import Computed, DeviceLost
from service.engine.kv_store import KVShape
from service.engine.layout import Layout
from service.engine.logits_processors import RuleBatch
from service.engine.logprobs import LogprobTensors, token_logprobs
from service.engine.sampler import sampler_batch
from service.engine.sequence import Sequence
from service.engine.speculation import accept
from service.engine.token_rules import RowRules, TokenMask
from service.engine.transfer import to_device, to_host

# Rows of prompts whose logits are in memory at once: 32 rows of 49152 numbers take 6 MB.
_PROMPT_ROWS = 32

_MAX_LOSS = 700.0  # exp of a larger number overflows a float

# More threads would take cores from the model, which computes at the same time.
_GRAMMAR_THREADS = 2

_NO_TOKEN = -1  # instead of a token id, for a row in which no token is allowed


class Model(Protocol):
    """A decoder and its KV cache."""

    def block_tensors(self) -> list[Tensor]:
        """Return the KV cache as tensors, each with the blocks as its first dimension."""
        ...

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
    def quantization(self) -> str:
        """The precision of the weights; see `service.domain.engine.EngineCapabilities`."""
        name = self.description.get("quantization", "none")
        return self.description.get("dtype", "") if name == "none" else name

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
    masks: Future[list[TokenMask]] | None

    @property
    def sequence(self) -> Sequence:
        return self.scheduled.sequence

    @property
    def has_logprobs(self) -> bool:
        return self.sequence.request.num_logprobs is not None

    @property
    def num_logprobs(self) -> int:
        return self.sequence.request.num_logprobs or 0


class ModelRunner:
    """`service.engine.core.Runner` over a model.

    The masks of grammars are computed on other threads while the model computes the step.

    Args:
        library: The native kernels, which sample from logits on a CPU; None to use torch.
    """

    def __init__(self, model: Model, library: ctypes.CDLL | None = None) -> None:
        self._model = model
        self._library = library
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
        # The whole step is queued on the device before the only wait, which is for its results.
        tokens = (
            _SampledTokens(sampled, self._model.logits(hidden[: len(rows)]), self._library)
            if rows
            else None
        )
        prompt = self._prompt_logprobs(hidden[len(rows) :], layout) if prompt_rows else ()
        queued = () if tokens is None else tokens.tensors
        arrays = to_host([*queued, *prompt])
        results = iter(() if tokens is None else tokens.results(arrays[: len(queued)]))
        computed = [next(results) if s.is_sampled else Computed() for s in batch.scheduled]
        if prompt_rows:
            num_top = [num_top for _, num_top in layout.prompt_logprob_targets()]
            logprobs = iter(token_logprobs(arrays[len(queued) :], num_top))
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

    def _prompt_logprobs(self, hidden: Tensor, layout: Layout) -> LogprobTensors:
        """Return the log probability of the token after each of `layout.prompt_logprob_rows`.

        Args:
            hidden: The output of `Model.forward` for these rows.
        """
        targets = layout.prompt_logprob_targets()
        [token_ids] = to_device([np.array([t for t, _ in targets], dtype=np.int64)], hidden.device)
        num_top = max(num_top for _, num_top in targets)
        parts = []
        for some, ids in zip(
            torch.split(hidden, _PROMPT_ROWS), torch.split(token_ids, _PROMPT_ROWS), strict=True
        ):
            rows = torch.arange(len(ids), device=ids.device)
            parts.append(LogprobTensors.of(self._model.logits(some), rows, ids, num_top))
        return LogprobTensors.joined(parts)


class _SampledTokens:
    """The tokens of a step and their log probabilities, queued on the device.

    Args:
        sampled: The sequences for which tokens are sampled.
        logits: [rows, vocab_size], the logits of their rows. They are changed.
        library: The native kernels; None to use torch.

    Attributes:
        tensors: The tensors that `results` needs on the host.
    """

    def __init__(
        self, sampled: list[_Sampled], logits: Tensor, library: ctypes.CDLL | None
    ) -> None:
        device = logits.device
        self._sampled = sampled
        rules, self._errors = _rules(sampled)
        self._rules = RuleBatch(rules, logits.shape[-1], device)
        sampler = sampler_batch(*_sampling(sampled), logits, library)
        copied = iter(to_device([*self._rules.arrays, *sampler.arrays], device))
        has_logprobs = any(s.has_logprobs for s in sampled)
        # Log probabilities are those of the model's own logits, and the rules change the logits.
        own_logits = logits.clone() if rules and has_logprobs else logits
        largest = self._rules.apply(logits, list(islice(copied, len(self._rules.arrays))))
        token_ids = sampler.sample(logits, list(copied))
        self.tensors: list[Tensor] = [largest, token_ids]
        self._num_logprobs = [0] * len(sampled)
        if has_logprobs:
            self.tensors += self._logprobs(own_logits, token_ids)

    def results(self, arrays: list[NDArray[Any]]) -> list[Computed]:
        """Return the result of each sequence.

        Args:
            arrays: `self.tensors` on the host.
        """
        accepted = self._accepted(*arrays[:2])
        num_top = [
            s.num_logprobs
            for s, count in zip(self._sampled, self._num_logprobs, strict=True)
            for _ in range(count)
        ]
        found = iter(token_logprobs(arrays[2:], num_top) if num_top else ())
        logprobs = [tuple(islice(found, count)) for count in self._num_logprobs]
        return [
            Computed(token_ids, entries[: len(token_ids)])
            if i not in self._errors
            else Computed(error=self._errors[i])
            for i, (token_ids, entries) in enumerate(zip(accepted, logprobs, strict=True))
        ]

    def _logprobs(self, logits: Tensor, token_ids: Tensor) -> LogprobTensors:
        """Queue the log probabilities of the first `_num_logprobs` tokens of each sequence."""
        is_cpu = logits.device.type == "cpu"
        # Without a wait it is not known which rows are drafts that are rejected. On a CPU it is.
        rows_of = [s.rows for s in self._sampled]
        if is_cpu:
            accepted = self._accepted(*to_host(self.tensors))
            rows_of = [rows[: len(ids)] for rows, ids in zip(rows_of, accepted, strict=True)]
        rows_of = [
            rows if s.has_logprobs else range(0)
            for s, rows in zip(self._sampled, rows_of, strict=True)
        ]
        self._num_logprobs = list(map(len, rows_of))
        rows = np.array(list(chain.from_iterable(rows_of)), dtype=np.int64)
        [index] = to_device([rows], logits.device)
        num_top = max(s.num_logprobs for s in self._sampled)
        return LogprobTensors.of(logits, index, token_ids.index_select(0, index), num_top)

    def _accepted(
        self, largest: NDArray[np.float32], token_ids: NDArray[np.int64]
    ) -> list[tuple[int, ...]]:
        """Return the accepted tokens of each sequence."""
        of_row: list[int] = token_ids.tolist()
        for row in self._rules.rows_without_token(largest):
            of_row[row] = _NO_TOKEN
        return [_accepted(of_row, s) for s in self._sampled]


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
