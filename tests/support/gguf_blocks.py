"""Random blocks of GGUF's tensor types."""

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

# Positions of the float16 numbers in a block.
HALVES = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
    "IQ3_XXS": (0,),
}


def random_rows(kind: str, num_rows: int, num_blocks: int, seed: int) -> torch.Tensor:
    """Return blocks of random bytes, except the float16 numbers, which are finite."""
    rng = np.random.default_rng(seed)
    block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1]
    blocks = rng.integers(0, 256, (num_rows, num_blocks, block_bytes), dtype=np.uint8)
    for start in HALVES[kind]:
        numbers = rng.standard_normal((num_rows, num_blocks, 1)).astype(np.float16)
        blocks[..., start : start + 2] = numbers.view(np.uint8)
    return torch.from_numpy(blocks.reshape(num_rows, -1))
