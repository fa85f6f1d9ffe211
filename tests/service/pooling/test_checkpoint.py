"""The task, pooling, prompts, labels and maximum length of a checkpoint."""

from pathlib import Path
from typing import Any

import pytest

from service.domain.pooling import Activation, Task
from service.errors import ModelLoadError
from service.pooling.checkpoint import (
    Dense,
    Pooling,
    check_task,
    classifier_head,
    embedding_modules,
    find_task,
    max_input_tokens,
)
from tests.support.pooling_models import add_modules, write


def config(path: Path, **fields: Any) -> Path:
    write(path / "config.json", {"architectures": ["BertModel"], **fields})
    return path


@pytest.mark.parametrize(
    ("architecture", "fields", "task"),
    [
        ("BertModel", {}, Task.EMBED),
        ("RobertaForMaskedLM", {}, Task.EMBED),
        ("BertForSequenceClassification", {}, Task.CLASSIFY),
        ("BertForSequenceClassification", {"id2label": {"0": "LABEL_0"}}, Task.SCORE),
        ("LlamaForCausalLM", {}, Task.GENERATE),
        ("GPT2LMHeadModel", {}, Task.GENERATE),
        ("Gemma3ForConditionalGeneration", {}, Task.GENERATE),
    ],
)
def test_task_follows_from_the_architecture(
    tmp_path: Path, architecture: str, fields: dict[str, Any], task: Task
) -> None:
    assert find_task(config(tmp_path, architectures=[architecture], **fields)) is task


def test_task_of_a_checkpoint_without_architectures_is_generation(tmp_path: Path) -> None:
    write(tmp_path / "config.json", {})
    assert find_task(tmp_path) is Task.GENERATE


def test_modules_make_a_causal_model_an_embedding_model(tmp_path: Path) -> None:
    path = add_modules(config(tmp_path, architectures=["Qwen3ForCausalLM"]))
    assert find_task(path) is Task.EMBED


def test_modules_of_a_cross_encoder_do_not_make_it_an_embedding_model(tmp_path: Path) -> None:
    kind = "BertForSequenceClassification"
    path = config(tmp_path, architectures=[kind], id2label={"0": "LABEL_0"})
    write(path / "modules.json", [{"path": "", "type": "sentence_transformers.x.Transformer"}])
    write(path / "config_sentence_transformers.json", {"model_type": "CrossEncoder"})
    assert find_task(path) is Task.SCORE


@pytest.mark.parametrize(
    ("architecture", "task", "message"),
    [
        ("BertModel", Task.CLASSIFY, "task=classify"),
        ("LlamaForCausalLM", Task.SCORE, "task=score"),
        ("BertForSequenceClassification", Task.SCORE, "it has 2 labels"),
        ("BertForSequenceClassification", Task.EMBED, "it is a classifier"),
    ],
)
def test_task_that_a_checkpoint_cannot_serve_is_rejected(
    tmp_path: Path, architecture: str, task: Task, message: str
) -> None:
    with pytest.raises(ModelLoadError, match=message):
        check_task(config(tmp_path, architectures=[architecture]), task)


def test_modules_are_read(tmp_path: Path) -> None:
    settings = {"prompts": {"query": "q: ", "document": ""}, "default_prompt_name": "query"}
    pooling = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
    path = add_modules(
        config(tmp_path), pooling | {"include_prompt": False}, dense={}, settings=settings
    )
    found = embedding_modules(path)
    assert found.pooling == Pooling(("cls", "mean"), includes_prompt=False)
    assert found.modules == (Dense(path / "2_Dense", "tanh", has_bias=True, has_residual=False),)
    assert (found.normalizes, found.default_prompt) == (True, "query")
    assert found.prompts == {"query": "q: ", "document": ""}


@pytest.mark.parametrize("mode", ["lasttoken", ["lasttoken"]])
def test_newer_form_of_pooling_is_read(tmp_path: Path, mode: Any) -> None:
    path = add_modules(config(tmp_path), {"pooling_mode": mode})
    assert embedding_modules(path).pooling.modes == ("lasttoken",)


def test_model_without_modules_has_a_default_pooling(tmp_path: Path) -> None:
    encoder = embedding_modules(config(tmp_path))
    assert (encoder.pooling.modes, encoder.normalizes) == (("mean",), False)
    decoder = embedding_modules(config(tmp_path, architectures=["LlamaForCausalLM"]))
    assert (decoder.pooling.modes, decoder.normalizes) == (("lasttoken",), True)


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([{"path": "", "type": "a.Transformer"}, {"path": "1_CNN", "type": "a.CNN"}], "CNN"),
        ([{"path": "0_T", "type": "a.Transformer"}], "Transformer as module 0"),
        ([{"path": "", "type": "a.Transformer"}], "no module Pooling"),
        (["x"], "is not a list of modules"),
        ({"a": 1}, "not a JSON array"),
    ],
)
def test_unsupported_module_is_rejected_by_name(tmp_path: Path, modules: Any, message: str) -> None:
    write(config(tmp_path) / "modules.json", modules)
    with pytest.raises(ModelLoadError, match=message):
        embedding_modules(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pooling": {"pooling_mode": "best"}}, "'best', which is unknown"),
        ({"dense": {"activation_function": "torch.nn.Softsign"}}, "Softsign"),
        ({"settings": {"default_prompt_name": "x"}}, "'x' without a prompt"),
    ],
)
def test_unsupported_value_is_rejected(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelLoadError, match=message):
        embedding_modules(add_modules(config(tmp_path), **change))


@pytest.mark.parametrize(
    ("fields", "activation"),
    [
        ({}, Activation.SOFTMAX),
        ({"problem_type": "multi_label_classification"}, Activation.SIGMOID),
        ({"problem_type": "regression"}, Activation.NONE),
        ({"num_labels": 1}, Activation.SIGMOID),
        (
            {"num_labels": 1, "sbert_ce_default_activation_function": "torch.nn.Identity"},
            Activation.NONE,
        ),
        (
            {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}},
            Activation.SIGMOID,
        ),
    ],
)
def test_activation_is_that_of_the_checkpoint(
    tmp_path: Path, fields: dict[str, Any], activation: Activation
) -> None:
    assert classifier_head(config(tmp_path, **fields)).activation is activation


def test_labels_are_in_the_order_of_their_ids(tmp_path: Path) -> None:
    names = {str(i): f"label-{i}" for i in reversed(range(12))}
    found = classifier_head(config(tmp_path, id2label=names))
    assert found.labels == tuple(f"label-{i}" for i in range(12))


def test_unsupported_cross_encoders_are_rejected(tmp_path: Path) -> None:
    activation = {"sentence_transformers": {"activation_fn": "my.Own"}}
    with pytest.raises(ModelLoadError, match=r"my\.Own"):
        classifier_head(config(tmp_path, **activation))
    write(tmp_path / "config_sentence_transformers.json", {"default_prompt_name": "query"})
    with pytest.raises(ModelLoadError, match="with a prompt"):
        classifier_head(config(tmp_path))


def test_maximum_length_is_the_least_of_the_files(tmp_path: Path) -> None:
    path = config(tmp_path, model_type="roberta", max_position_embeddings=514, pad_token_id=1)
    assert max_input_tokens(path, None) == 512
    write(path / "tokenizer_config.json", {"model_max_length": 10**30})
    assert max_input_tokens(path, None) == 512
    write(path / "sentence_bert_config.json", {"max_seq_length": 128})
    assert (max_input_tokens(path, None), max_input_tokens(path, 100)) == (128, 100)
    with pytest.raises(ModelLoadError, match="128 tokens"):
        max_input_tokens(path, 129)


def test_model_without_a_maximum_length_needs_one(tmp_path: Path) -> None:
    path = config(tmp_path)
    with pytest.raises(ModelLoadError, match="Set max_model_len"):
        max_input_tokens(path, None)
    assert max_input_tokens(path, 64) == 64
