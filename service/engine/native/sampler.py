"""Samples tokens by the native kernels, with the results of `service.engine.sampler`."""

import ctypes
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MAX_VOCAB_SIZE: Final = 2**20 - 1


class SamplingColumns(NamedTuple):
    """The parameters of n rows. Each is [n], contiguous.

    Attributes:
        temperature: float32, greater than 0.
        draw: float64, uniform in [0, 1).
        top_k: int64, at least 1; 1 takes the most likely token.
        top_p: float32.
        min_p: float32.
    """

    temperature: NDArray[np.float32]
    draw: NDArray[np.float64]
    top_k: NDArray[np.int64]
    top_p: NDArray[np.float32]
    min_p: NDArray[np.float32]


class _Sampling(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in SamplingColumns._fields)


def sample(library: ctypes.CDLL, columns: SamplingColumns, logits: Tensor) -> Tensor:
    """Sample one token for each row. The cost does not depend on how flat a row is.

    Args:
        library: The native kernels.
        logits: [B, vocab_size], float32, contiguous. vocab_size is at most `MAX_VOCAB_SIZE`.

    Returns:
        Token ids [B]. A row with NaNs, or without a finite logit, gives any token id.
    """
    rows, vocab_size = logits.shape
    token_ids = torch.empty(rows, dtype=torch.int64)
    sampling = _Sampling(*(column.ctypes.data for column in columns))
    library.chatrpc_sample(
        ctypes.byref(sampling),
        ctypes.c_void_p(logits.data_ptr()),
        ctypes.c_int64(rows),
        ctypes.c_int64(vocab_size),
        ctypes.c_void_p(token_ids.data_ptr()),
    )
    return token_ids
