"""The models of pooling, beside transformers' own classes and a plain implementation of pooling."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification

from service.domain.engine_settings import EngineSettings
from service.domain.pooling import Task
from service.errors import ModelLoadError
from service.pooling.batch import TokenizedInput, packed
from service.pooling.runners import EmbeddingRunner, load_runner
from tests.support.pooling_models import (
    DECODERS,
    ENCODERS,
    VOCAB_SIZE,
    add_modules,
    save_classifier,
    save_encoder,
)

SETTINGS = EngineSettings(device="cpu", num_threads=1)
LENGTHS = (5, 1, 17, 5, 30, 2, 17, 5)
PACKED = {"bert", "roberta", "xlm-roberta", "distilbert", "modernbert", *DECODERS}


def inputs(lengths: Sequence[int] = LENGTHS, num_skipped: int = 0) -> list[TokenizedInput]:
    return [
        TokenizedInput(
            [(11 + 7 * i + 13 * j) % (VOCAB_SIZE - 8) + 4 for j in range(length)],
            num_skipped=num_skipped,
        )
        for i, length in enumerate(lengths)
    ]


def run(path: Path, task: Task, given: Sequence[TokenizedInput]) -> np.ndarray[Any, Any]:
    return np.stack(load_runner(path, task, SETTINGS).run(packed(given)))


@torch.inference_mode()
def separate_states(path: Path, given: Sequence[TokenizedInput]) -> list[Tensor]:
    """Return the hidden states of each input, [length, 32], computed separately by transformers."""
    model = AutoModel.from_pretrained(path).eval()
    return [model(input_ids=torch.tensor([each.token_ids])).last_hidden_state[0] for each in given]


@pytest.mark.parametrize("model_type", [*ENCODERS, *DECODERS])
def test_embeddings_are_those_of_transformers(tmp_path: Path, model_type: str) -> None:
    path = add_modules(save_encoder(tmp_path, model_type), normalizes=False)
    given = inputs()
    runner = load_runner(path, Task.EMBED, SETTINGS)
    assert isinstance(runner, EmbeddingRunner)
    assert runner.num_outputs == 32
    assert runner.is_packed == (model_type in PACKED)
    expected = torch.stack([states.mean(0) for states in separate_states(path, given)]).numpy()
    np.testing.assert_allclose(np.stack(runner.run(packed(given))), expected, atol=1e-5, rtol=1e-5)


POOLS = {
    "cls": lambda x: x[0],
    "max": lambda x: x.max(0).values,
    "mean": lambda x: x.mean(0),
    "mean_sqrt_len_tokens": lambda x: x.sum(0) / len(x) ** 0.5,
    "weightedmean": lambda x: (
        sum((i + 1) * row for i, row in enumerate(x)) / sum(range(len(x) + 1))
    ),
    "lasttoken": lambda x: x[-1],
}


@pytest.mark.parametrize("mode", POOLS)
def test_modes_of_pooling_are_those_of_their_definition(tmp_path: Path, mode: str) -> None:
    path = add_modules(save_encoder(tmp_path), {"pooling_mode": mode}, normalizes=False)
    given = inputs()
    expected = np.stack([POOLS[mode](states).numpy() for states in separate_states(path, given)])
    np.testing.assert_allclose(run(path, Task.EMBED, given), expected, atol=1e-5, rtol=1e-5)


def test_several_modes_are_joined_and_a_prompt_may_be_left_out(tmp_path: Path) -> None:
    config = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
    path = add_modules(save_encoder(tmp_path), config, normalizes=False)
    given = inputs((5, 9, 5), num_skipped=2)
    states = separate_states(path, given)
    expected = np.stack([torch.cat([each[2], each[2:].mean(0)]).numpy() for each in states])
    np.testing.assert_allclose(run(path, Task.EMBED, given), expected, atol=1e-5, rtol=1e-5)


def test_dense_module_follows_pooling(tmp_path: Path) -> None:
    path = add_modules(save_encoder(tmp_path), dense={}, normalizes=False)
    given = inputs()
    vectors = run(path, Task.EMBED, given)
    weights = load_file(path / "2_Dense" / "model.safetensors")
    pooled = torch.stack([states.mean(0) for states in separate_states(path, given)])
    expected = torch.tanh(pooled @ weights["linear.weight"].T + weights["linear.bias"]).numpy()
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


@pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert", "modernbert", "qwen3"])
def test_classifier_is_that_of_transformers(tmp_path: Path, model_type: str) -> None:
    path = save_classifier(tmp_path, model_type)
    given = inputs()
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    with torch.inference_mode():
        expected = [model(torch.tensor([each.token_ids])).logits[0].numpy() for each in given]
    np.testing.assert_allclose(run(path, Task.CLASSIFY, given), expected, atol=1e-5, rtol=1e-5)


def test_pair_has_the_types_of_its_texts(tmp_path: Path) -> None:
    path = save_classifier(tmp_path, num_labels=1)
    ids, types = [2, 40, 41, 3, 50, 3], [0, 0, 0, 0, 1, 1]
    given = [TokenizedInput(ids, types), TokenizedInput(ids)]
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    with torch.inference_mode():
        of_pair = model(torch.tensor([ids]), token_type_ids=torch.tensor([types])).logits.item()
        of_text = model(torch.tensor([ids])).logits.item()
    assert of_pair != pytest.approx(of_text, abs=1e-3)
    np.testing.assert_allclose(run(path, Task.SCORE, given), [[of_pair], [of_text]], atol=1e-5)


@pytest.mark.parametrize("model_type", ["bert", "mpnet", "mistral"])
def test_embedding_does_not_depend_on_the_batch(tmp_path: Path, model_type: str) -> None:
    path = add_modules(save_encoder(tmp_path, model_type))
    runner = load_runner(path, Task.EMBED, SETTINGS)
    given = inputs()
    together = runner.run(packed(given))
    alone = [runner.run(packed([each]))[0] for each in given]
    np.testing.assert_allclose(np.stack(together), np.stack(alone), atol=1e-5, rtol=1e-5)


def test_missing_tensor_is_rejected_by_its_name(tmp_path: Path) -> None:
    path = save_encoder(tmp_path)
    AutoModel.from_pretrained(path).save_pretrained(path)
    weights = load_file(path / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"no encoder\.layer\.1\.output\.dense\.weight"):
        load_runner(path, Task.EMBED, SETTINGS)


def test_classifier_without_its_head_is_rejected(tmp_path: Path) -> None:
    path = save_encoder(tmp_path)
    with pytest.raises(ModelLoadError, match=r"it has no classifier"):
        load_runner(path, Task.CLASSIFY, SETTINGS)
