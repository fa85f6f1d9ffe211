"""Batches give the same tokens as `model.generate`, for the embedded model in float32."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from service.checkpoint import resolve
from service.config import ServiceSettings
from service.domain.engine import Request
from service.domain.sampling import SamplingParams
from service.engine.load import EngineOptions, load_engine

pytestmark = pytest.mark.slow

PROMPT_LENGTHS = [15, 15, 14, 40]
NUM_TOKENS = 24
NUM_BLOCKS = 5  # the three prompts and one more token need six


def prompts() -> list[tuple[int, ...]]:
    rng = random.Random(3)
    return [tuple(rng.randrange(20, 40_000) for _ in range(n)) for n in PROMPT_LENGTHS]


@torch.inference_mode()
def generate_one_by_one(path: Path) -> list[list[int]]:
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model.generation_config.eos_token_id = None  # generate all tokens
    return [
        model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=NUM_TOKENS,
        )[0, len(prompt) :].tolist()
        for prompt in prompts()
    ]


def generate_in_batches(path: Path) -> list[list[int]]:
    """Add a request in each step. Prefill is chunked, and the cache is too small for all."""
    core, _ = load_engine(
        EngineOptions(
            path,
            dtype="float32",
            max_num_seqs=8,
            max_num_batched_tokens=32,
            block_size=16,
            # A block has 16 tokens, and a token 46,080 bytes.
            kv_cache_memory_bytes=NUM_BLOCKS * 16 * 46_080,
        )
    )
    outputs: list[list[int]] = [[] for _ in PROMPT_LENGTHS]
    sampling = SamplingParams(temperature=0, max_tokens=NUM_TOKENS)
    arrivals = list(enumerate(prompts()))
    while arrivals or core.has_unfinished:
        if arrivals:
            i, prompt = arrivals.pop(0)
            core.add(i, Request(prompt, sampling))
        for step in core.step():
            assert not isinstance(step.output, Exception)
            outputs[step.request_id].extend(step.output.token_ids)
    assert core.stats.num_preemptions > 0
    assert core.stats.num_free_kv_blocks == core.stats.num_kv_blocks
    return outputs


def test_overlapping_greedy_completions_equal_generate() -> None:
    path = resolve(None, ServiceSettings.load([]).cache_dir).path
    assert generate_in_batches(path) == generate_one_by_one(path)
