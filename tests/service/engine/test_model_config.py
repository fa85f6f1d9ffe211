import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from service.engine.model_config import read_config
from tests.service.engine.models import CONFIGS, make_config


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Write a config.json with as few fields as those of old models."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "llama", "rope_theta": 5000.0}')
    return path


@pytest.mark.parametrize("name", CONFIGS)
def test_config_has_the_attributes_of_transformers(name: str, tmp_path: Path) -> None:
    model_type, fields = CONFIGS[name]
    theirs: Any = make_config(model_type, **fields)
    theirs.save_pretrained(tmp_path)
    theirs = AutoConfig.from_pretrained(tmp_path).get_text_config()
    read_config(tmp_path, tmp_path)
    ours = read_config(tmp_path, tmp_path)  # it is cached
    for field in ("model_type", "vocab_size", "num_hidden_layers", "max_position_embeddings"):
        assert getattr(ours, field) == getattr(theirs, field)
    for field, value in theirs.to_dict().items():
        assert getattr(ours, field) == json.loads(json.dumps(value))


def test_config_has_the_defaults_of_the_model_class(model: Path, tmp_path: Path) -> None:
    config = read_config(model, tmp_path)
    assert config.num_key_value_heads == config.num_attention_heads
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 5000.0}


def test_cached_config_is_read_without_transformers_and_torch(model: Path, tmp_path: Path) -> None:
    read_config(model, tmp_path)
    code = (
        "import sys, pathlib; from service.engine.model_config import read_config;"
        "config = read_config(*map(pathlib.Path, sys.argv[1:]));"
        "print(config.num_attention_heads, *{'torch', 'transformers'} & sys.modules.keys())"
    )
    command = [sys.executable, "-c", code, str(model), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    assert done.stdout == "32\n"


def test_another_config_is_another_entry(model: Path, tmp_path: Path) -> None:
    read_config(model, tmp_path)
    (model / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 3}')
    assert read_config(model, tmp_path).num_hidden_layers == 3


def test_damaged_cache_entry_is_replaced(model: Path, tmp_path: Path) -> None:
    config = read_config(model, tmp_path)
    (entry,) = (tmp_path / "configs").iterdir()
    entry.write_text("{")
    assert vars(read_config(model, tmp_path)) == vars(config)
    assert json.loads(entry.read_text())["model_type"] == "llama"


def test_read_only_cache_is_ignored(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert read_config(model, tmp_path / "file").model_type == "llama"
