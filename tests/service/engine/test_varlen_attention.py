"""The native decoder with `VarlenAttention`: each token of a greedy output equals that of
`model.generate`.

The kernel of CUDA is replaced by an operator for the CPU, which also computes in float32.
"""

import random
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from service.domain.engine import Request, TokenOutput
from service.domain.sampling import SamplingParams
from service.engine.block_pool import BlockPool
from service.engine.core import EngineCore
from service.engine.decoder.architecture import read_architecture
from service.engine.decoder.attention import TorchAttention
from service.engine.decoder.decoder import Decoder, read_embedding, read_head, read_layer
from service.engine.decoder.linear import FloatLinear
from service.engine.decoder.rope import make_ropes
from service.engine.decoder.weights import Weights
from service.engine.kv_store import KVShape
from service.engine.model_config import read_config
from service.engine.model_runner import ModelRunner
from service.engine.scheduler import Scheduler
from service.engine.varlen_attention import VarlenAttention, VarlenKVStore
from tests.service.engine.models import CONFIGS, VOCAB_SIZE, make_config, reference, save_model
from tests.support import varlen_operator

BLOCK_SIZE, NUM_BLOCKS, MAX_LEN = 256, 12, 1024
MAX_TOKENS = 12
CPU = torch.device("cpu")

varlen_operator.install("CPU")


class Float32Store(VarlenKVStore):
    """A cache of a type that the kernel does not support, and the operator of tests does."""

    dtypes: ClassVar = frozenset({torch.float32})


def load_core(path: Path) -> EngineCore:
    config = read_config(path, path)
    a = read_architecture(config)
    assert a is not None
    with Weights(path, torch.float32, CPU, None) as weights:
        layers = [
            read_layer(i, weights, a, FloatLinear, torch.float32) for i in range(len(a.layers))
        ]
        embedding = read_embedding(weights, a, torch.float32)
        head = read_head(weights, a, FloatLinear, torch.float32)
    shapes = [KVShape(a.num_kv_heads, a.head_dim, a.head_dim, torch.float32)] * len(layers)
    varlen = VarlenAttention(Float32Store(shapes, NUM_BLOCKS, BLOCK_SIZE, CPU))
    attention = TorchAttention(a, varlen, torch.float32)
    ropes = make_ropes(config, a, MAX_LEN, CPU)
    decoder = Decoder(a, embedding, layers, head, attention, ropes, torch.float32)
    scheduler = Scheduler(BlockPool(NUM_BLOCKS, BLOCK_SIZE), 4, 64, 8)
    return EngineCore(scheduler, ModelRunner(decoder), MAX_LEN)


NAMES = ("llama", "llama-multi-head", "llama-multi-query", "mistral", "qwen3", "gemma3", "smollm3")


@pytest.mark.parametrize("name", NAMES)
def test_greedy_outputs_equal_those_of_generate(name: str, tmp_path: Path) -> None:
    """The prompts come one after the other. One has three blocks, and a chunk ends within one."""
    model_type, fields = CONFIGS[name]
    fields = fields | {"head_dim": 16, "max_position_embeddings": MAX_LEN}
    path = save_model(tmp_path, make_config(model_type, **fields))
    rng = random.Random(1)
    prompts = [tuple(rng.choices(range(3, VOCAB_SIZE), k=n)) for n in (1, 300, 5, 255, 600)]
    core = load_core(path)
    outputs: list[list[int]] = [[] for _ in prompts]

    def step() -> None:
        for output in core.step():
            assert isinstance(output.output, TokenOutput)
            outputs[output.request_id] += output.output.token_ids

    varlen_operator.calls.clear()
    for i, prompt in enumerate(prompts):
        core.add(i, Request(prompt, SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)))
        step()
    while core.has_unfinished:
        step()
    generate = reference(path)
    assert outputs == [generate(prompt, MAX_TOKENS) for prompt in prompts]
    assert {call.max_rows == 1 for call in varlen_operator.calls} == {True, False}


def test_softcap_is_rejected() -> None:
    shape = KVShape(1, 8, 8, torch.bfloat16)
    attention = VarlenAttention(VarlenKVStore([shape], 1, BLOCK_SIZE, CPU))
    rows = torch.zeros(1, 1, 8, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="softcap"):
        attention.attend(0, rows, rows, rows, 1.0, None, 30.0)
