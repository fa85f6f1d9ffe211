import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from service.engine.checkpoint_tensors import open_tensors, reject_foreign
from service.errors import ModelLoadError


def save(path: Path, name: str, tensor: str) -> None:
    save_file({tensor: torch.zeros(1)}, path / name)


def test_all_shards_are_opened_but_for_copies_in_mistrals_format(tmp_path: Path) -> None:
    save(tmp_path, "model-00001-of-00002.safetensors", "a")
    save(tmp_path, "model-00002-of-00002.safetensors", "b")
    save(tmp_path, "consolidated.safetensors", "layers.0.attention.wq.weight")
    save(tmp_path, "consolidated-00001-of-00001.safetensors", "tok_embeddings.weight")
    assert open_tensors(tmp_path).keys() == {"a", "b"}


def test_index_selects_the_files(tmp_path: Path) -> None:
    save(tmp_path, "part-1.safetensors", "a")
    save(tmp_path, "left-over.safetensors", "b")
    index = {"weight_map": {"a": "part-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert open_tensors(tmp_path).keys() == {"a"}


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}']
)
def test_invalid_index_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelLoadError, match=r"index\.json is not an index"):
        open_tensors(tmp_path)


def test_missing_file_of_the_index_is_named(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "part-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelLoadError, match=r"part-1\.safetensors cannot be read: No such file"):
        open_tensors(tmp_path)


def test_single_file_takes_precedence_over_shards(tmp_path: Path) -> None:
    save(tmp_path, "model.safetensors", "a")
    save(tmp_path, "model-00001-of-00001.safetensors", "b")
    index = {"weight_map": {"b": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert open_tensors(tmp_path).keys() == {"a"}


def test_unopenable_file_is_reported_with_the_system_error(tmp_path: Path) -> None:
    """The file is a link to itself: if the tests run as root, every other file can be read."""
    file = tmp_path / "model.safetensors"
    file.symlink_to(file)
    with pytest.raises(ModelLoadError, match="cannot be read: Too many levels of symbolic links"):
        open_tensors(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_unreadable_file_reports_permission_denied(tmp_path: Path) -> None:
    save(tmp_path, "model.safetensors", "a")
    (tmp_path / "model.safetensors").chmod(0)
    with pytest.raises(ModelLoadError, match="Permission denied"):
        open_tensors(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.norm.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.post_attention_layernorm.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.layers.0.mlp.gate_up_proj.weight",
        "vision_tower.encoder.layers.0.attention.weight",
    ],
)
def test_names_of_plain_models_are_not_foreign(name: str, tmp_path: Path) -> None:
    reject_foreign(tmp_path, [name])
