"""Pooling models from their checkpoints to the backends of the RPCs."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from transformers import AutoModelForSequenceClassification

from service.config import ServiceSettings
from service.domain.backend import CallContext, ServedModel
from service.domain.embeddings import EmbeddingRequest
from service.domain.engine import Caller
from service.domain.pooling import (
    Activation,
    ClassificationRequest,
    ScoreRequest,
    Task,
    TextPair,
    Truncation,
)
from service.errors import ContextLengthExceeded, InvalidField, ModelLoadError, UnsupportedField
from service.runtimes import load_runtime_factory
from tests.fakes.workers import InlineWorkers
from tests.support.pooling_models import (
    add_modules,
    save_classifier,
    save_encoder,
    sentence,
    write,
)

PROMPTS = {"prompts": {"query": "the old ", "document": "", "new": "new "}}
TEXTS = (sentence(3), sentence(9, 4), sentence(1, 2))


@asynccontextmanager
async def loaded(path: Path, **options: Any) -> AsyncIterator[ServedModel]:
    """Load a model as the service does."""
    given = {"model": path, "device": "cpu", "num-threads": 1, **options}
    arguments = [each for name, value in given.items() for each in (f"--{name}", str(value))]
    runtime = load_runtime_factory(ServiceSettings.load(arguments))()
    try:
        yield await runtime.load()
    finally:
        await runtime.stop()


def call() -> CallContext:
    return CallContext(Caller(), time.monotonic() + 60, 0, InlineWorkers())


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_modules(save_encoder(tmp_path_factory.mktemp("embedder")), settings=PROMPTS)


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classifier(tmp_path_factory.mktemp("reranker"), num_labels=1)


async def embedded(model: ServedModel, **fields: Any) -> np.ndarray[Any, Any]:
    assert model.embeddings is not None
    request = EmbeddingRequest(**{"inputs": TEXTS, **fields})
    return np.array((await model.embeddings.embed(request, call())).vectors)


async def test_embedding_model_is_found_and_described(embedder: Path) -> None:
    async with loaded(embedder, **{"served-model-name": "mine"}) as model:
        assert model.tasks == [Task.EMBED, Task.SCORE]
        assert (model.card.id, model.card.max_model_len, model.card.engine) == ("mine", 40, "local")
        assert model.embeddings is not None
        assert model.embeddings.num_dimensions == 32
        assert model.embeddings.prompt_names == ["document", "new", "query"]
        assert model.backend.tokenizer is not None
        assert model.backend.load().num_sequences == 0


async def test_embeddings_have_the_options_of_the_request(embedder: Path) -> None:
    async with loaded(embedder) as model:
        whole = await embedded(model)
        np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-6)
        raw = await embedded(model, normalize=False)
        np.testing.assert_allclose(raw / np.linalg.norm(raw, axis=1)[:, None], whole, atol=1e-6)
        short = await embedded(model, dimensions=5)
        expected = whole[:, :5] / np.linalg.norm(whole[:, :5], axis=1)[:, None]
        np.testing.assert_allclose(short, expected, atol=1e-6)
        prompted = await embedded(model, prompt_name="new")
        texts = tuple(f"new {text}" for text in TEXTS)
        np.testing.assert_allclose(prompted, await embedded(model, inputs=texts), atol=1e-6)
        cut = await embedded(model, inputs=(sentence(80),), truncation=Truncation())
        np.testing.assert_allclose(cut, await embedded(model, inputs=(sentence(38),)), atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "error", "field"),
    [
        ({"inputs": ("a", sentence(60))}, ContextLengthExceeded, "text_inputs.texts[1]"),
        ({"dimensions": 33}, InvalidField, "dimensions"),
        ({"prompt_name": "other"}, InvalidField, "prompt_name"),
        ({"prompt_name": "new", "inputs": ((5,),)}, UnsupportedField, "prompt_name"),
    ],
)
async def test_invalid_request_is_rejected_by_field(
    embedder: Path, fields: dict[str, Any], error: type[InvalidField], field: str
) -> None:
    async with loaded(embedder) as model:
        with pytest.raises(error) as caught:
            await embedded(model, **fields)
        assert caught.value.field == field


async def test_numbers_of_dimensions_that_the_checkpoint_lists_are_the_only_ones(
    tmp_path: Path,
) -> None:
    path = add_modules(save_encoder(tmp_path, matryoshka_dimensions=[8, 16]))
    async with loaded(path) as model:
        assert (await embedded(model, dimensions=16)).shape == (3, 16)
        assert (await embedded(model, dimensions=32)).shape == (3, 32)
        with pytest.raises(InvalidField, match="8 or 16 dimensions, not 12"):
            await embedded(model, dimensions=12)


async def test_score_of_an_embedding_model_is_a_cosine(embedder: Path) -> None:
    pairs = (TextPair(TEXTS[0], TEXTS[1]), TextPair(TEXTS[0], TEXTS[2]))
    async with loaded(embedder) as model:
        assert model.scorer is not None
        assert not model.scorer.has_activation
        found = await model.scorer.score(ScoreRequest(pairs, "pairs"), call())
        [query] = await embedded(model, inputs=TEXTS[:1], prompt_name="query")
        documents = await embedded(model, inputs=TEXTS[1:])
        np.testing.assert_allclose(found.scores, documents @ query, atol=1e-6)
        assert found.num_prompt_tokens == 2 * (3 + 2 + 2) + (9 + 2) + (1 + 2)
        cut = ScoreRequest(pairs, "documents", max_tokens_per_document=1)
        firsts = tuple(TextPair(each.query, each.document.split()[0]) for each in pairs)
        expected = await model.scorer.score(ScoreRequest(firsts, "pairs"), call())
        assert (await model.scorer.score(cut, call())).scores == expected.scores
        short = ScoreRequest((TextPair("river", sentence(60)),), "documents", Activation.MODEL)
        with pytest.raises(ContextLengthExceeded):
            await model.scorer.score(short, call())


async def test_reranker_is_found_and_scores_pairs(reranker: Path) -> None:
    pairs = (TextPair(TEXTS[0], TEXTS[1]), TextPair(TEXTS[1], TEXTS[2]))
    async with loaded(reranker) as model:
        assert model.tasks == [Task.CLASSIFY, Task.SCORE]
        assert model.scorer is not None
        raw = await model.scorer.score(ScoreRequest(pairs, "pairs", Activation.NONE), call())
        own = await model.scorer.score(ScoreRequest(pairs, "pairs"), call())
    logits = reference(reranker, pairs)[:, 0]
    np.testing.assert_allclose(raw.scores, logits, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(own.scores, 1 / (1 + np.exp(-logits)), atol=1e-6)


@torch.inference_mode()
def reference(path: Path, pairs: tuple[TextPair, ...]) -> np.ndarray[Any, Any]:
    """Return the logits of pairs that transformers computes, one at a time."""
    tokenizer = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    rows = []
    for pair in pairs:
        encoding = tokenizer.encode(pair.query, pair.document)
        types = torch.tensor([encoding.type_ids])
        rows.append(model(torch.tensor([encoding.ids]), token_type_ids=types).logits[0].numpy())
    return np.array(rows)


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        (Activation.MODEL, lambda x: np.exp(x) / np.exp(x).sum(1, keepdims=True)),
        (Activation.SOFTMAX, lambda x: np.exp(x) / np.exp(x).sum(1, keepdims=True)),
        (Activation.SIGMOID, lambda x: 1 / (1 + np.exp(-x))),
        (Activation.NONE, lambda x: x),
    ],
)
async def test_classifier_has_labels_and_activations(
    tmp_path: Path, activation: Activation, function: Callable[[Any], Any]
) -> None:
    names = {0: "bad", 1: "so-so", 2: "good"}
    path = save_classifier(tmp_path, id2label=names)
    pairs = (TextPair(TEXTS[0], TEXTS[1]),)
    async with loaded(path) as model:
        assert model.tasks == [Task.CLASSIFY]
        assert model.classifier is not None
        assert list(model.classifier.labels) == ["bad", "so-so", "good"]
        request = ClassificationRequest(pairs, "pair_inputs.pairs", activation)
        found = await model.classifier.classify(request, call())
    np.testing.assert_allclose(found.scores, function(reference(path, pairs)), atol=1e-5)
    assert found.num_prompt_tokens == 3 + 9 + 3


async def test_task_overrides_that_of_the_checkpoint(tmp_path: Path, reranker: Path) -> None:
    async with loaded(reranker, task="classify") as model:
        assert model.tasks == [Task.CLASSIFY]
    path = save_encoder(tmp_path, "qwen3")
    config = (path / "config.json").read_text()
    (path / "config.json").write_text(config.replace("Qwen3Model", "Qwen3ForCausalLM"))
    async with loaded(path, task="embed") as model:
        vectors = await embedded(model)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block-size": 16}, "block_size cannot be set for a model with task=embed"),
        ({"quantization": "int8"}, "quantization cannot be set"),
        ({"task": "score"}, "cannot serve task=score"),
        ({"max-model-len": 100}, "the maximum length of the model is 40 tokens"),
    ],
)
async def test_option_that_does_not_fit_is_rejected(
    embedder: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelLoadError, match=message):
        async with loaded(embedder, **options):
            pass


async def test_damaged_module_is_rejected(tmp_path: Path) -> None:
    path = add_modules(save_encoder(tmp_path), dense={})
    (path / "2_Dense" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelLoadError, match="cannot be read"):
        async with loaded(path):
            pass
    write(path / "modules.json", [{"type": "x.Transformer", "path": ""}, {"type": "x.LSTM"}])
    with pytest.raises(ModelLoadError, match="LSTM as module 1"):
        async with loaded(path):
            pass
