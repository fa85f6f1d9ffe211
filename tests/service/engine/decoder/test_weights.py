from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from structlog.testing import capture_logs

from service.engine.decoder.weights import Weights
from service.errors import ModelLoadError

CPU = torch.device("cpu")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_file({"a": torch.ones(2, 3)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": torch.zeros(4)}, tmp_path / "model-00002-of-00002.safetensors")
    return tmp_path


def test_all_files_are_one_mapping(checkpoint: Path) -> None:
    with Weights(checkpoint, torch.bfloat16, CPU) as weights:
        assert torch.equal(weights["a"], torch.ones(2, 3, dtype=torch.bfloat16))
        assert torch.equal(weights.shaped("b", 4), torch.zeros(4, dtype=torch.bfloat16))
        assert "b" in weights
        assert "c" not in weights


def test_missing_tensor_is_named(checkpoint: Path) -> None:
    with (
        Weights(checkpoint, torch.float32, CPU) as weights,
        pytest.raises(ModelLoadError, match="not complete: it has no c"),
    ):
        weights["c"]


def test_tensor_of_another_shape_is_named(checkpoint: Path) -> None:
    with (
        Weights(checkpoint, torch.float32, CPU) as weights,
        pytest.raises(ModelLoadError, match=r"a has the shape \[2, 3\] .* \[3, 2\]"),
    ):
        weights.shaped("a", 3, 2)


def test_damaged_file_is_rejected(checkpoint: Path) -> None:
    (checkpoint / "model-00002-of-00002.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ModelLoadError, match="cannot be loaded"):
        Weights(checkpoint, torch.float32, CPU)


def test_unread_tensor_is_logged(checkpoint: Path) -> None:
    with Weights(checkpoint, torch.float32, CPU) as weights, capture_logs() as logs:
        weights["a"]
        weights.check_unread()
    assert logs == [
        {"event": "checkpoint_tensors_not_used", "first": "b", "count": 1, "log_level": "warning"}
    ]


def test_positions_that_are_computed_are_not_reported(checkpoint: Path) -> None:
    save_file(
        {"x.rotary_emb.inv_freq": torch.ones(2)}, checkpoint / "model-00003-of-00003.safetensors"
    )
    with Weights(checkpoint, torch.float32, CPU) as weights, capture_logs() as logs:
        weights["a"]
        weights["b"]
        weights.check_unread()
    assert logs == []
