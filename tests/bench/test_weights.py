"""The counts of weights, compared with the tensors."""

import json
from math import prod
from pathlib import Path

from bench import weights
from bench.checkpoints import compressed, random
from bench.shapes import SHAPES, Shape
from tests.bench.models import SHAPE, tiny, tokenizer


def test_counts_are_those_of_the_shape(tmp_path: Path) -> None:
    facts = tiny(tmp_path).facts
    sizes = {name: prod(size) for name, size in SHAPE.tensors(16).items()}
    assert facts.num_parameters == sum(sizes.values())
    assert facts.num_head_weights == 16 * 32
    assert facts.num_layer_weights + facts.num_head_weights == facts.num_parameters
    assert facts.kv_bytes_per_token == 2 * 2 * 2 * 8 * 2
    assert facts.attention_operations_per_position == 4 * 2 * 4 * 8


def test_embedding_that_is_not_the_head_is_not_read(tmp_path: Path) -> None:
    shape = Shape("qwen3", 32, 64, 1, 4, 2, 8, 40, 1e4, tie_word_embeddings=False)
    random.write(shape, tokenizer(tmp_path / "tokenizer"), tmp_path / "bf16")
    facts = weights.facts("", "", tmp_path / "bf16")
    assert facts.num_parameters == facts.num_layer_weights + 2 * facts.num_head_weights
    assert weights.checkpoint_bytes(tmp_path / "bf16") == 2 * (
        facts.num_layer_weights + facts.num_head_weights
    )


def test_quantized_files_have_fewer_bytes(tmp_path: Path) -> None:
    facts = tiny(tmp_path).facts
    compressed.convert(tmp_path / "bf16", tmp_path / "int8", 8)
    full = weights.checkpoint_bytes(tmp_path / "bf16")
    assert full == 2 * facts.num_parameters
    assert weights.gguf_bytes(tmp_path / "q4_0.gguf") > full  # norms are in float32
    assert weights.checkpoint_bytes(tmp_path / "int8") < full


def test_shape_llama_1b_has_1_07_billion_parameters_with_the_embedded_vocabulary() -> None:
    sizes = SHAPES["llama-1b"].tensors(49152)
    assert round(sum(map(prod, sizes.values())) / 1e9, 2) == 1.07


def test_config_of_a_shape_is_json() -> None:
    for shape in SHAPES.values():
        assert json.loads(json.dumps(shape.config(10)))["vocab_size"] == 10
