"""Conversion of GGUF files, as written by llama.cpp's converter, back to checkpoints."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from service.engine.quantized_checkpoint import read_quantized_weights
from service.engine.stored_weights import open_weights
from service.errors import ModelLoadError
from service.gguf.convert import convert, link
from tests.fakes.gguf_files import (
    GEMMA,
    byte_level_vocab,
    keys_of,
    sentence_piece_vocab,
    tensors_of,
    write_gguf,
)
from tests.support.params import slow_but

VOCAB = 320
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}
YARN_KEYS = {
    "rope.freq_base": 10000.0,
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 128,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.75,
    "original_max_position_embeddings": 128,
    "short_factor": [1.0, 1.1, 1.25, 1.5, 2.0, 3.0],
    "long_factor": [1.0, 2.0, 4.1, 8.0, 9.0, 10.25],
}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}


def llama3(factor: float, low: float, high: float, length: int) -> dict[str, Any]:
    return {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": length,
    }


def llama3_factors(rope: dict[str, Any], head_dim: int) -> np.ndarray[Any, Any]:
    """Return the values that the converter writes as `rope_freqs.weight`."""
    frequencies = rope["rope_theta"] ** -(np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
    length, low, high = (
        rope["original_max_position_embeddings"],
        rope["low_freq_factor"],
        rope["high_freq_factor"],
    )
    factors = []
    for wavelength in 2 * np.pi / frequencies:
        if wavelength < length / high:
            factors.append(1.0)
        elif wavelength > length / low:
            factors.append(rope["factor"])
        else:
            smooth = (length / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, np.float32)


@dataclass
class Case:
    """A model, the keys of its GGUF file in addition to the common ones, and extra tensors."""

    architecture: str
    model_type: str
    config: dict[str, Any]
    keys: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Any] = field(default_factory=dict)


def llama3_case(rope: dict[str, Any]) -> Case:
    factors = {"rope_freqs.weight": llama3_factors(rope, 16)}
    return Case("llama", "llama", {"rope_parameters": rope}, {"rope.freq_base": 5e5}, factors)


def gemma2_case(layers: int, scalar: int, **config: float) -> Case:
    caps = {"attn_logit_softcapping": 40.0, "final_logit_softcapping": 20.0} | config
    sizes = {"head_dim": 32, "num_hidden_layers": layers, "query_pre_attn_scalar": scalar}
    keys = {"attention.key_length": 32, "attention.value_length": 32} | caps
    return Case(
        "gemma2",
        "gemma2",
        {"sliding_window": 8, "rope_parameters": DEFAULT, **sizes, **caps},
        keys | {"attention.sliding_window": 8},
    )


def gemma3_case(layers: int, scalar: int, factor: float | None, **keys: Any) -> Case:
    rope, own = GEMMA3_ROPE, {}
    if factor:
        full = {"rope_type": "linear", "factor": factor, "rope_theta": 1e6}
        rope = GEMMA3_ROPE | {"full_attention": full}
        own = {"rope.scaling.type": "linear", "rope.scaling.factor": factor}
    config = {
        "head_dim": 32,
        "num_hidden_layers": layers,
        "query_pre_attn_scalar": scalar,
        "sliding_window": 8,
        "rope_parameters": rope,
    }
    own |= {"attention.key_length": 32, "attention.value_length": 32, "rope.freq_base": 1e6}
    return Case("gemma3", "gemma3_text", config, own | {"attention.sliding_window": 8} | keys)


PHI3_KEYS = {
    "rope.dimension_count": 16,
    "rope.scaling.original_context_length": 512,
    "attention.sliding_window": 0,
    "rope.freq_base": 10000.0,
}
ROPE_DIM = {"rope.dimension_count": 16}
CASES = {
    "llama": Case("llama", "llama", {"rope_parameters": DEFAULT}, ROPE_DIM),
    "llama tied": Case(
        "llama", "llama", {"rope_parameters": DEFAULT, "tie_word_embeddings": True}, ROPE_DIM
    ),
    "llama with biases": Case(
        "llama",
        "llama",
        {"rope_parameters": DEFAULT, "attention_bias": True, "mlp_bias": True},
        ROPE_DIM,
    ),
    "llama with wide heads": Case(
        "llama",
        "llama",
        {"rope_parameters": DEFAULT, "head_dim": 32},
        {"attention.key_length": 32, "attention.value_length": 32, "rope.dimension_count": 32},
    ),
    "llama 3.1": llama3_case(llama3(8.0, 1.0, 4.0, 8192)),
    "llama 3.2": llama3_case(llama3(32.0, 1.0, 4.0, 8192)),
    "llama 3.1, short": llama3_case(llama3(8.0, 1.0, 4.0, 64)),
    "llama 3.1, odd": llama3_case(llama3(8.0, 2.0, 5.0, 100)),
    "llama linear": Case(
        "llama",
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
    ),
    "llama yarn": Case("llama", "llama", {"rope_parameters": YARN}, YARN_KEYS),
    "llama yarn in full": Case(
        "llama",
        "llama",
        {"rope_parameters": YARN | {"beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 0.75}},
        YARN_KEYS
        | {
            "rope.scaling.yarn_beta_fast": 16.0,
            "rope.scaling.yarn_beta_slow": 2.0,
            "rope.scaling.yarn_attn_factor": 0.75,
            "rope.scaling.yarn_ext_factor": 1.0,
        },
    ),
    "mistral": Case(
        "llama", "mistral", {"rope_parameters": DEFAULT, "sliding_window": None}, ROPE_DIM
    ),
    "mistral with a window": Case(
        "llama",
        "mistral",
        {"rope_parameters": DEFAULT, "sliding_window": 7},
        {"attention.sliding_window": 7},
    ),
    "qwen2": Case("qwen2", "qwen2", {"rope_parameters": DEFAULT}),
    "qwen2 yarn": Case("qwen2", "qwen2", {"rope_parameters": YARN}, YARN_KEYS),
    "qwen3": Case(
        "qwen3",
        "qwen3",
        {"rope_parameters": DEFAULT, "head_dim": 32, "tie_word_embeddings": True},
        {"attention.key_length": 32, "attention.value_length": 32},
    ),
    "qwen3moe": Case(
        "qwen3moe",
        "qwen3_moe",
        {
            "rope_parameters": DEFAULT,
            "head_dim": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "norm_topk_prob": True,
        },
        {
            "attention.key_length": 16,
            "attention.value_length": 16,
            "expert_count": 4,
            "expert_used_count": 2,
            "expert_feed_forward_length": 48,
        },
    ),
    "ministral 3": Case(
        "mistral3",
        "ministral3",
        {
            "head_dim": 16,
            "sliding_window": None,
            "rope_parameters": YARN
            | {
                "original_max_position_embeddings": 16,
                "mscale": 1.0,
                "mscale_all_dim": 0.5,
                "llama_4_scaling_beta": 0.2,
            },
        },
        YARN_KEYS
        | {
            "rope.scaling.original_context_length": 16,
            "rope.scaling.yarn_log_multiplier": 0.5,
            "attention.temperature_scale": 0.2,
        },
    ),
    "phi3": Case("phi3", "phi3", {"rope_parameters": DEFAULT}, PHI3_KEYS),
    "phi3 with a window": Case(
        "phi3",
        "phi3",
        {"rope_parameters": DEFAULT, "sliding_window": 7},
        PHI3_KEYS | {"attention.sliding_window": 7},
    ),
    "phi4 mini": Case(
        "phi3",
        "phi3",
        {
            "rope_parameters": LONGROPE,
            "original_max_position_embeddings": 128,
            "tie_word_embeddings": True,
        },
        PHI3_KEYS
        | {
            "rope.dimension_count": 12,
            "rope.scaling.original_context_length": 128,
            "rope.scaling.attn_factor": float(np.sqrt(1 + np.log(4) / np.log(128))),
        },
        {
            "rope_factors_long.weight": np.array(LONGROPE["long_factor"], np.float32),
            "rope_factors_short.weight": np.array(LONGROPE["short_factor"], np.float32),
        },
    ),
    "gemma": Case(
        "gemma",
        "gemma",
        {"rope_parameters": DEFAULT, "head_dim": 32},
        {"attention.key_length": 32, "attention.value_length": 32},
    ),
    "gemma2": gemma2_case(4, 32),
    "gemma2 27b": gemma2_case(46, 16),
    "gemma3": gemma3_case(8, 32, None),
    "gemma3 4b": gemma3_case(8, 32, 8.0),
    "gemma3 by Google": gemma3_case(
        8,
        32,
        None,
        **{"rope.freq_base": None, "rope.global.freq_base": 1e6, "rope.local.freq_base": 1e4},
    ),
    "gemma3 27b": gemma3_case(62, 16, 8.0, **{"rope.freq_base_swa": 10000.0}),
    "smollm3": Case(
        "smollm3", "smollm3", {"rope_parameters": DEFAULT, "num_hidden_layers": 8}, ROPE_DIM
    ),
    "granite": Case(
        "granite",
        "granite",
        {
            "rope_parameters": DEFAULT,
            "attention_multiplier": 0.0625,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "logits_scaling": 8.0,
        },
        {
            "attention.scale": 0.0625,
            "embedding_scale": 12.0,
            "residual_scale": 0.22,
            "logit_scale": 8.0,
            "rope.scaling.finetuned": True,
            "ssm.conv_kernel": 4,
        },
    ),
    "glm4": Case(
        "glm4",
        "glm4",
        {
            "rope_parameters": DEFAULT | {"partial_rotary_factor": 0.5},
            "head_dim": 16,
            "attention_bias": True,
        },
        {"rope.dimension_count": 8},
    ),
    "glm4 without biases": Case(
        "glm4",
        "glm4",
        {
            "rope_parameters": DEFAULT | {"partial_rotary_factor": 0.5},
            "head_dim": 16,
            "attention_bias": False,
        },
        {"rope.dimension_count": 8},
    ),
    "exaone4": Case(
        "exaone4",
        "exaone4",
        {
            "rope_parameters": DEFAULT,
            "sliding_window": None,
            "sliding_window_pattern": None,
            "layer_types": ["full_attention"] * 4,
        },
    ),
    "exaone4 with a window": Case(
        "exaone4",
        "exaone4",
        {
            "rope_parameters": DEFAULT,
            "sliding_window": 7,
            "sliding_window_pattern": 4,
            "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
        },
        {
            "attention.sliding_window": 7,
            "attention.sliding_window_pattern": [True, True, True, False],
        },
    ),
    "olmo3": Case(
        "olmo2",
        "olmo3",
        {
            "rope_parameters": {"full_attention": YARN, "sliding_attention": DEFAULT},
            "sliding_window": 7,
            "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
        },
        YARN_KEYS
        | {
            "rope.freq_base_swa": 10000.0,
            "attention.sliding_window": 7,
            "attention.sliding_window_pattern": [True, True, True, False],
        },
    ),
    "olmo2": Case("olmo2", "olmo2", {"rope_parameters": DEFAULT}),
}


def make_model(case: Case) -> Any:
    """Return a model in float32 with random weights that bfloat16 and float16 represent exactly."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(case.model_type, **(SIZES | case.config))
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn_like(parameter) * 0.3
            if name.endswith("norm.weight") and case.architecture not in GEMMA:
                values += 1
            values[values.abs() < 2**-10] = 0  # others are exact in float16
            parameter.copy_(values.bfloat16().float())
    return model.eval()


def write_case(
    path: Path,
    case: Case,
    model: Any,
    kind: GGMLQuantizationType = GGMLQuantizationType.BF16,
    change: Callable[[dict[str, Any], dict[str, Any]], None] = lambda keys, tensors: None,
) -> Path:
    keys = keys_of(model.config) | case.keys
    tensors = tensors_of(model, case.architecture) | case.tensors
    change(keys, tensors)
    vocab = sentence_piece_vocab if case.architecture in GEMMA else byte_level_vocab
    return write_gguf(path, case.architecture, keys, tensors, kind=kind, tokenizer=vocab(VOCAB))


@pytest.fixture(scope="module")
def tiny() -> tuple[Case, Any]:
    return CASES["llama"], make_model(CASES["llama"])


QUICK = {"llama", "qwen3moe", "phi3", "gemma", "glm4", "olmo2"}


class TestRoundTrip:
    @pytest.mark.parametrize("name", slow_but(QUICK, CASES))
    def test_weights_and_greedy_tokens_are_those_of_the_checkpoint(
        self, name: str, tmp_path: Path
    ) -> None:
        case = CASES[name]
        original = make_model(case)
        convert(write_case(tmp_path / "model.gguf", case, original), tmp_path / "out", {})
        converted: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
        expected, found = original.state_dict(), converted.state_dict()
        assert found.keys() == expected.keys()
        assert [key for key in found if not torch.equal(found[key], expected[key])] == []
        prompt = torch.randint(2, 258, (1, 24))
        with torch.no_grad():
            torch.testing.assert_close(
                converted(prompt).logits, original(prompt).logits, rtol=1e-4, atol=1e-4
            )
        answers = [
            model.generate(
                prompt, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0
            ).tolist()
            for model in (original, converted)
        ]
        assert answers[0] == answers[1]

    @pytest.mark.parametrize(
        "kind", [GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16]
    )
    def test_floats_are_kept_exactly(
        self, kind: GGMLQuantizationType, tiny: tuple[Case, Any], tmp_path: Path
    ) -> None:
        case, original = tiny
        convert(write_case(tmp_path / "model.gguf", case, original, kind), tmp_path / "out", {})
        converted: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
        expected, found = original.state_dict(), converted.state_dict()
        assert [key for key in found if not torch.equal(found[key], expected[key])] == []

    def test_parameters_of_llama3_are_recovered(self, tmp_path: Path) -> None:
        case = CASES["llama 3.1, short"]
        convert(write_case(tmp_path / "model.gguf", case, make_model(case)), tmp_path / "out", {})
        config = json.loads((tmp_path / "out" / "config.json").read_bytes())
        assert config["rope_parameters"] == llama3(8.0, 1.0, 4.0, 64)


class TestLink:
    @pytest.mark.parametrize("name", slow_but(QUICK, CASES))
    def test_linked_weights_are_those_of_the_conversion(self, name: str, tmp_path: Path) -> None:
        case = CASES[name]
        path = write_case(tmp_path / "model.gguf", case, make_model(case))
        check_link(path, tmp_path)

    @pytest.mark.parametrize("kind", ["F32", "F16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
    def test_weights_of_each_type_are_those_of_the_conversion(
        self, kind: str, tiny: tuple[Case, Any], tmp_path: Path
    ) -> None:
        path = write_case(tmp_path / "model.gguf", *tiny, kind=GGMLQuantizationType[kind])
        check_link(path, tmp_path)
        stored = read_quantized_weights(tmp_path / "link")
        assert stored is not None
        assert stored.method == kind

    def test_weights_are_not_copied(self, tiny: tuple[Case, Any], tmp_path: Path) -> None:
        path = write_case(tmp_path / "model.gguf", *tiny)
        link(path, tmp_path / "link", {})
        own = [file for file in (tmp_path / "link").iterdir() if not file.is_symlink()]
        assert not list((tmp_path / "link").glob("*.safetensors"))
        assert sum(file.stat().st_size for file in own) < 50_000


def check_link(path: Path, directory: Path) -> None:
    """Check that a link and a conversion of the file `path` are the same checkpoint."""
    convert(path, directory / "out", {})
    link(path, directory / "link", {})
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        files = [directory / kind / name for kind in ("out", "link")]
        assert files[0].read_bytes() == files[1].read_bytes()
    converted = load_file(directory / "out" / "model.safetensors")
    stored = read_quantized_weights(directory / "link")
    weights = open_weights(directory / "link", torch.device("cpu"), stored)
    assert weights.names == converted.keys()
    different = [
        name
        for name, values in converted.items()
        if not torch.equal(weights.read(name).bfloat16(), values)
    ]
    assert different == []
    weights.close()


def _set(name: str, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(keys: dict[str, Any], tensors: dict[str, Any]) -> None:
        keys[name] = value

    return change


def _tensor(name: str, shape: tuple[int, ...] | None) -> Any:
    def change(keys: dict[str, Any], tensors: dict[str, Any]) -> None:
        if shape is None:
            del tensors[name]
        else:
            tensors[name] = np.ones(shape, np.float32)

    return change


class TestRejected:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (_set("expert_count", 8), r"llama\.expert_count = 8, which is not served"),
            (_set("unheard_of", 1.5), r"llama\.unheard_of = 1\.5, which is not served"),
            (_set("attention.causal", False), r"llama\.attention\.causal is False"),
            (_set("rope.dimension_count", 8), r"llama\.rope\.dimension_count is 8"),
            (_set("rope.scaling.type", "longrope"), r"'longrope' \(rope\.scaling\.type\)"),
            (_set("rope.scaling.type", "dynamic"), r"'dynamic' \(rope\.scaling\.type\)"),
            (_set("rope.scaling.attn_factor", 1.2), r"rope\.scaling\.attn_factor is 1\.2"),
            (_set("rope.scaling.yarn_log_multiplier", 0.1), r"yarn_log_multiplier = 0\.1"),
            (_set("attention.value_length", 8), r"attention\.value_length is 8"),
            (_set("attention.head_count_kv", [2, 2, 1, 2]), r"head_count_kv differs between"),
            (_set("attention.head_count_kv", 3), r"do not divide into groups"),
            (_set("attention.layer_norm_rms_epsilon", None), r"lacks the metadata key llama\.att"),
            (_set("block_count", 2**31), r"block_count is 2147483648"),
            (_set("block_count", 1000), r"claims 1000 layers"),
            (_set("block_count", 5), r"lacks 9 of its tensors, blk\.4\.attn_norm\.weight first"),
            (_set("block_count", 3), r"tensor blk\.3\.attn_.*\.weight, which is not served"),
            (_set("feed_forward_length", 95), r"shape \[96, 64\]; its metadata require \[95, 64\]"),
            (_set("feed_forward_length", "many"), r"feed_forward_length is 'many'"),
            (_set("vocab_size", 319), r"llama\.vocab_size is 319"),
            (_tensor("blk.0.attn_q_norm.weight", (16,)), r"tensor blk\.0\.attn_q_norm\.weight, wh"),
            (_tensor("blk.0.ffn_up.scale", (1,)), r"tensor blk\.0\.ffn_up\.scale, which is not"),
            (_tensor("rope_freqs.weight", (7,)), r"rope_freqs\.weight has not 8 factors"),
            (_tensor("blk.2.ffn_up.weight", None), r"lacks 1 of its tensors, blk\.2\.ffn_up\.wei"),
            (_tensor("token_embd.weight", None), r"lacks the tensor token_embd\.weight"),
        ],
    )
    def test_file_is_rejected_by_the_name_of_what_is_not_served(
        self, change: Any, message: str, tiny: tuple[Case, Any], tmp_path: Path
    ) -> None:
        path = write_case(tmp_path / "model.gguf", *tiny, change=change)
        with pytest.raises(ModelLoadError, match=message) as raised:
            convert(path, tmp_path / "out", {})
        assert "\n" not in str(raised.value)

    @pytest.mark.parametrize("value", [0, 0.0, False, ""])
    def test_unknown_key_with_an_empty_value_is_ignored(
        self, value: Any, tiny: tuple[Case, Any], tmp_path: Path
    ) -> None:
        path = write_case(tmp_path / "model.gguf", *tiny, change=_set("unheard_of", value))
        convert(path, tmp_path / "out", {})

    @pytest.mark.parametrize("name", ["gpt-oss", "minimax-m2", "qwen35", "gemma4", "unheard-of"])
    def test_unknown_architecture_is_named_with_those_served(
        self, name: str, tmp_path: Path
    ) -> None:
        path = write_gguf(tmp_path / "model.gguf", name, {"block_count": 1}, {})
        with pytest.raises(
            ModelLoadError,
            match=rf"architecture '{name}' is not supported\. Supported are llama, .*qwen3",
        ):
            convert(path, tmp_path / "out", {})

    @pytest.mark.parametrize(
        ("general", "message"),
        [
            ({"general.type": "adapter"}, r"general\.type is 'adapter'"),
            ({"split.count": 3}, r"one of 3 parts of a model"),
        ],
    )
    def test_file_that_is_no_whole_model_is_rejected(
        self, general: dict[str, Any], message: str, tmp_path: Path
    ) -> None:
        path = write_gguf(tmp_path / "model.gguf", "llama", {}, {}, general=general)
        with pytest.raises(ModelLoadError, match=message):
            convert(path, tmp_path / "out", {})

    def test_values_that_are_not_finite_are_rejected(
        self, tiny: tuple[Case, Any], tmp_path: Path
    ) -> None:
        def change(keys: dict[str, Any], tensors: dict[str, Any]) -> None:
            tensors["output_norm.weight"] = np.full(64, np.inf, np.float32)

        path = write_case(tmp_path / "model.gguf", *tiny, change=change)
        with pytest.raises(
            ModelLoadError, match=r"output_norm\.weight has values that are not fin"
        ):
            convert(path, tmp_path / "out", {})
