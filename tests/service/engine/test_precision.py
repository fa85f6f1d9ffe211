"""The embedded model's perplexity in each precision, compared to float32."""

import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from tests.service.engine.perplexity import (
    WINDOW,
    embedded_model,
    measure,
    precisions,
    read_text,
    table,
    windows,
)

LLAMA_CPP = 14.077  # the perplexity of llama.cpp with the same file, tokens and windows

# Without the native kernels, a busy machine needs many minutes.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


@pytest.fixture(scope="module")
def path() -> Path:
    return embedded_model()


@pytest.fixture(scope="module")
def token_ids(path: Path) -> list[int]:
    return read_text(path)


@pytest.fixture(scope="module")
def figures(path: Path, token_ids: list[int]) -> dict[str, float]:
    """Return the perplexities. They are measured in parallel with one thread each: on a busy
    machine, two threads that wait for each other at every product take ten times as long."""
    options = precisions(path)
    with ThreadPoolExecutor(max_workers=2) as pool:
        measured = pool.map(partial(measure, token_ids=token_ids), options.values())
        return dict(zip(options, measured, strict=True))


@torch.inference_mode()
def perplexity_by_transformers(path: Path, token_ids: list[int]) -> float:
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    losses = [
        F.cross_entropy(model(piece[None]).logits[0, :-1], piece[1:], reduction="none").double()
        for piece in map(torch.tensor, windows(token_ids, WINDOW))
    ]
    return math.exp(torch.cat(losses).mean().item())


def test_perplexity_of_each_precision_is_within_its_limit(figures: dict[str, float]) -> None:
    print(f"\n{table(figures)}")  # noqa: T201  # the figures themselves, with pytest -s
    assert 10 < figures["float32"] < 30, "not a text that the model can read"
    assert figures["bfloat16"] <= 1.005 * figures["float32"]
    assert figures["int8"] <= 1.01 * figures["float32"]
    assert figures["default"] <= 1.01 * LLAMA_CPP
    assert figures["int8 cache"] <= 1.005 * figures["default"]


def test_float32_is_as_good_as_transformers(token_ids: list[int]) -> None:
    path = embedded_model(reads_gguf=False)  # transformers does not read the GGUF file
    text = token_ids[: WINDOW + 100]  # a whole window and a part of one
    ours = measure(precisions(path)["float32"], text)
    assert ours == pytest.approx(perplexity_by_transformers(path, text), rel=1e-3)
