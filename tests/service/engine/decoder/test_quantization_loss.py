"""The loss of quantization, which is measured while a model is loaded."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from service.domain.engine_settings import Quantization
from service.engine.load import EngineOptions, load_model
from service.engine.model_runner import QuantizationLoss
from tests.service.engine.models import CONFIGS, make_config, save_model
from tests.service.engine.perplexity import measure
from tests.support.native_kernels import NEEDS_KERNELS

_TEXT = tuple(range(1, 90))
_TIED_AND_CAPPED = ("llama", "gemma2", "gemma3_text")


@pytest.mark.parametrize(
    ("family", "quantization"),
    [
        *((name, "int8") for name in _TIED_AND_CAPPED if name in CONFIGS),
        pytest.param("llama", "int4", marks=NEEDS_KERNELS),
    ],
)
def test_losses_are_those_of_the_model_in_either_precision(
    family: str, quantization: Quantization, tmp_path: Path
) -> None:
    model_type, fields = CONFIGS[family]
    path = save_model(tmp_path, make_config(model_type, **fields))
    options = EngineOptions(
        path, device="cpu", quantization=quantization, cache_dir=tmp_path / "cache"
    )

    loss = load_model(replace(options, check_token_ids=_TEXT)).quantization_loss

    assert loss is not None
    quantized = measure(options, _TEXT, window=len(_TEXT))
    exact = measure(replace(options, quantization="none", dtype="float32"), _TEXT, len(_TEXT))
    assert math.exp(loss.quantized) == pytest.approx(quantized, rel=1e-3)
    assert math.exp(loss.reference) == pytest.approx(exact, rel=2e-2)  # the engine may use bfloat16


def test_loss_without_a_text_is_not_measured(tmp_path: Path) -> None:
    model_type, fields = CONFIGS["llama"]
    path = save_model(tmp_path, make_config(model_type, **fields))
    options = EngineOptions(path, device="cpu", quantization="int8", cache_dir=tmp_path / "cache")
    assert load_model(options).quantization_loss is None
    assert load_model(replace(options, check_token_ids=(5,))).quantization_loss is None


def test_perplexities_of_any_loss_are_finite() -> None:
    loss = QuantizationLoss(quantized=10_000.0, reference=math.log(19))
    quantized, reference = loss.perplexities
    assert 1e300 < quantized < math.inf
    assert reference == pytest.approx(19)
