import pytest
import torch
from torch import nn

from service.engine.kv_store import KVShape
from service.engine.transformers_model import ShapeProbe
from service.errors import ModelLoadError


class Layer(nn.Module):
    def __init__(self, layer_idx: int | None = 0, *, is_causal: bool = True) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.is_causal = is_causal


def probe(module: nn.Module, **kwargs: object) -> ShapeProbe:
    probe = ShapeProbe()
    key, value = torch.zeros(1, 2, 1, 6), torch.zeros(1, 2, 1, 4)
    output, _ = probe(module, torch.zeros(1, 8, 1, 6), key, value, None, **kwargs)
    assert output.shape == (1, 1, 8, 4)
    return probe


def test_probe_records_shapes_and_windows() -> None:
    probed = probe(Layer(3), sliding_window=9, dropout=0.0, s_aux=None)
    assert probed.shapes == {3: KVShape(2, 6, 4, torch.float32)}
    assert probed.windows == {3: 9}


@pytest.mark.parametrize(
    ("module", "kwargs", "reason"),
    [
        (Layer(), {"s_aux": torch.zeros(8)}, "s_aux"),
        (Layer(), {"position_bias": torch.zeros(1)}, "position_bias"),
        (Layer(), {"what_comes_next_year": 1}, "what_comes_next_year"),
        (Layer(is_causal=False), {}, "non-causal"),
        (Layer(), {"is_causal": False}, "non-causal"),
        (Layer(None), {}, "layer index"),
    ],
)
def test_probe_rejects_unsupported_arguments(
    module: nn.Module, kwargs: dict[str, object], reason: str
) -> None:
    with pytest.raises(ModelLoadError, match=reason):
        probe(module, **kwargs)
