from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

from service.engine.decoder.architecture import read_architecture
from service.engine.decoder.rope import is_served, make_ropes
from service.engine.transformers_config import fields_of
from tests.service.engine.models import CONFIGS, make_config

CPU = torch.device("cpu")
SCALED: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 32},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}


def config_with(rope: dict[str, Any], model_type: str = "llama") -> Any:
    fields = CONFIGS["llama"][1] | {"head_dim": 16}
    return make_config(model_type, **fields, rope_parameters={"rope_theta": 500.0} | rope)


def check(theirs: Any, reference: Any) -> None:
    config = SimpleNamespace(**fields_of(theirs))
    architecture = read_architecture(config)
    assert architecture is not None
    assert is_served(config)
    rope = make_ropes(config, architecture, 64, CPU)[""]
    positions = torch.tensor([0, 63, 5, 5])
    expected = reference(theirs)(torch.zeros(1), positions[None])
    for ours, whole in zip(rope.at(positions), expected, strict=True):
        pairs = ours.shape[-1]
        torch.testing.assert_close(ours, whole[0, :, :pairs])
        torch.testing.assert_close(ours, whole[0, :, pairs:])


@pytest.mark.parametrize("kind", SCALED)
def test_angles_are_those_of_transformers(kind: str) -> None:
    check(config_with(SCALED[kind] | {"rope_type": kind}), LlamaRotaryEmbedding)


def test_partial_rotary_factor_rotates_the_first_dimensions() -> None:
    config = config_with({"rope_type": "default", "partial_rotary_factor": 0.5}, "phi3")
    check(config, Phi3RotaryEmbedding)


def test_only_what_layers_use_is_made() -> None:
    model_type, fields = CONFIGS["gemma3"]
    config: Any = make_config(
        model_type, **fields | {"layer_types": ["sliding_attention"] * 3, "head_dim": 16}
    )
    architecture = read_architecture(config)
    assert architecture is not None
    assert list(make_ropes(config, architecture, 64, CPU)) == ["sliding_attention"]


def test_frequencies_that_change_with_the_sequence_are_not_served() -> None:
    assert not is_served(config_with({"rope_type": "dynamic", "factor": 2.0}))
