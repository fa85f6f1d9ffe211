from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.__main__ import app
from tests.support.pooling_models import add_modules, save_classifier, save_encoder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # those of sentence_transformers are not ours
]


def test_every_entry_has_a_rate(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    model = add_modules(save_encoder(tmp_path / "model"))
    done = CliRunner().invoke(app, ["embeddings", str(model), "--texts", "5", "--rounds", "1"])
    assert done.exit_code == 0, done.output
    lines = [line.split(maxsplit=2) for line in done.output.splitlines() if "texts/s" in line]
    assert [name for _, _, name in lines] == [
        "chatrpc",
        "sentence_transformers, batch 32",
        "sentence_transformers, batch 128",
    ]
    assert all(float(rate) > 0 for rate, _, _ in lines)


def test_model_that_does_not_embed_is_rejected(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    done = CliRunner().invoke(app, ["embeddings", str(save_classifier(tmp_path / "model"))])
    assert done.exit_code != 0
    assert "is no embedding model" in str(done.exception)
