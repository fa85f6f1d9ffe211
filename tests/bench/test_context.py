from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from bench import context
from bench.__main__ import app
from tests.support.native_kernels import CPU_LEVELS, HAS_COMPILER


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.mark.skipif(
    not (CPU_LEVELS and HAS_COMPILER), reason="an int8 cache needs the native kernels"
)
def test_each_number_of_sequences_and_tokens_has_a_row(model: Path) -> None:
    lines: list[str] = []
    rows = context.measure(model, [16, 100], [1, 3], 2, lines.append)
    assert [(row.num_sequences, row.context_len) for row in rows] == [
        (1, 16),
        (1, 100),
        (3, 16),
        (3, 100),
    ]
    assert len(lines) == 4
    assert all(rate > 0 for row in rows for rate in row.tokens_per_s.values())
    table = context.page("a model", rows).splitlines()
    assert sum(line.startswith(("| 1 | ", "| 3 | ")) for line in table) == 4


def test_numbers_that_are_not_positive_are_rejected() -> None:
    done = CliRunner().invoke(app, ["context", "--lengths", "10,0"])
    assert done.exit_code == 2
    assert "10,0 is not a list of positive numbers" in done.output
