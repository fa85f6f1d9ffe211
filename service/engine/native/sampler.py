"""Samples tokens by the native kernels, with the results of `service.engine.sampler`."""

import ctypes
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.domain.sampling import SamplingParams

MAX_VOCAB_SIZE: Final = 2**20 - 1

_NO_TOP_K = 2**62  # the value of `top_k` in a row without top-k


class _Sampling(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_void_p) for name in ("temperatures", "draws", "top_k", "top_p", "min_p")
    )


class NativeSamplerBatch:
    """A `SamplerBatch` of logits on a CPU. Its cost does not depend on how flat a row is.

    Args:
        library: The native kernels.
        params: The sampling parameters of each row.
        draws: A uniform draw from [0, 1) for each row. Greedy rows do not use it.

    Attributes:
        arrays: Nothing: there is no device to copy the parameters to.
    """

    arrays: Sequence[NDArray[Any]] = ()

    def __init__(
        self, library: ctypes.CDLL, params: Sequence[SamplingParams], draws: Sequence[float]
    ) -> None:
        self._sample = library.chatrpc_sample
        self._columns = (
            np.array([1.0 if p.is_greedy else p.temperature for p in params], dtype=np.float32),
            np.array(draws, dtype=np.float64),
            np.array([1 if p.is_greedy else p.top_k or _NO_TOP_K for p in params], dtype=np.int64),
            np.array([p.top_p for p in params], dtype=np.float32),
            np.array([p.min_p for p in params], dtype=np.float32),
        )
        self._sampling = _Sampling(*(column.ctypes.data for column in self._columns))

    def sample(self, logits: Tensor, arrays: Sequence[Tensor] = ()) -> Tensor:  # noqa: ARG002
        """Sample one token for each row. See `service.engine.sampler.SamplerBatch.sample`.

        Args:
            logits: [B, vocab_size], float32, contiguous.
            arrays: Not used.

        Returns:
            Token ids [B].
        """
        rows, vocab_size = logits.shape
        token_ids = torch.empty(rows, dtype=torch.int64)
        self._sample(
            ctypes.byref(self._sampling),
            ctypes.c_void_p(logits.data_ptr()),
            ctypes.c_int64(rows),
            ctypes.c_int64(vocab_size),
            ctypes.c_void_p(token_ids.data_ptr()),
        )
        return token_ids
