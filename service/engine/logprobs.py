"""Log probabilities of tokens from the model's logits, before temperature, bias and masks."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from service.domain.engine import TokenLogprobs
from service.engine.vocab_blocks import as_blocks, top_in_order

# Number of rows computed at once on a CPU. This number of rows fits into a cache.
_ROWS = 8


class LogprobTensors(NamedTuple):
    """Log probabilities of n tokens and of the k most likely tokens in the same rows.

    Attributes:
        token_ids: [n].
        logprobs: [n], float32.
        top_token_ids: [n, k], in descending order of probability. Of equally likely tokens the
            lower id comes first.
        top_logprobs: [n, k], float32.
    """

    token_ids: Tensor
    logprobs: Tensor
    top_token_ids: Tensor
    top_logprobs: Tensor

    @classmethod
    def of(cls, logits: Tensor, rows: Tensor, token_ids: Tensor, num_top: int) -> "LogprobTensors":
        """Compute the log probabilities. Nothing waits for the device.

        Args:
            logits: [B, vocab_size], float32.
            rows: The row of each token, [n].
            token_ids: [n].
            num_top: The number of most likely tokens; at most all are returned.
        """
        at_once = _ROWS if logits.device.type == "cpu" else len(rows)
        return cls.joined(
            [
                _logprobs(logits.index_select(0, some_rows), some_ids, num_top)
                for some_rows, some_ids in zip(
                    torch.split(rows, at_once), torch.split(token_ids, at_once), strict=True
                )
            ]
        )

    @classmethod
    def joined(cls, parts: Sequence["LogprobTensors"]) -> "LogprobTensors":
        """Return the log probabilities of all parts, which have the same k."""
        return parts[0] if len(parts) == 1 else cls(*map(torch.cat, zip(*parts, strict=True)))


def _logprobs(logits: Tensor, token_ids: Tensor, num_top: int) -> LogprobTensors:
    logprobs = torch.log_softmax(logits, dim=-1)
    own = logprobs.gather(-1, token_ids[:, None]).squeeze(-1)
    count = min(num_top, logits.shape[-1])
    if not count:
        none = own.new_empty(len(own), 0)
        return LogprobTensors(token_ids, own, none.long(), none)
    top_logprobs, top_token_ids = top_in_order(as_blocks(logprobs, padding=-torch.inf), count)
    return LogprobTensors(token_ids, own, top_token_ids, top_logprobs)


def token_logprobs(arrays: Sequence[NDArray[Any]], num_top: Sequence[int]) -> list[TokenLogprobs]:
    """Return the log probabilities of n tokens as values.

    Args:
        arrays: The fields of `LogprobTensors`, on the host.
        num_top: The number of most likely tokens to return for each token, at most k.
    """
    return [
        TokenLogprobs(
            token_id,
            -math.inf if math.isnan(logprob) else logprob,
            # The logits of a broken model may be NaNs.
            tuple((t, p) for t, p in zip(ids[:n], values[:n], strict=True) if not math.isnan(p)),
        )
        for token_id, logprob, ids, values, n in zip(
            *(array.tolist() for array in arrays), num_top, strict=True
        )
    ]
