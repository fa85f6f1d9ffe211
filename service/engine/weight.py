"""The forms of a weight [N, K] that linear layers take."""

from collections.abc import Sequence

import torch
from torch import Tensor

from service.engine import gguf_blocks, grouped_weight
from service.engine.gguf_blocks import BlockWeight
from service.engine.grouped_weight import GroupedWeight

IntegerWeight = GroupedWeight | BlockWeight  # integers in groups of inputs
Weight = Tensor | IntegerWeight


def concatenate(weights: Sequence[Weight]) -> Weight | None:
    """Return one weight with the output channels of all `weights`, in order.

    None if they are not stored in the same way.
    """
    floats = [weight for weight in weights if isinstance(weight, Tensor)]
    grouped = [weight for weight in weights if isinstance(weight, GroupedWeight)]
    blocks = [weight for weight in weights if isinstance(weight, BlockWeight)]
    if len(floats) == len(weights):
        return torch.cat(floats)
    if len(grouped) == len(weights):
        return grouped_weight.concatenate(grouped)
    return gguf_blocks.concatenate(blocks) if len(blocks) == len(weights) else None
