"""The description of the model and its load in the protocol's messages."""

import json
from dataclasses import replace
from pathlib import Path

from service.domain.engine import EngineStats
from service.domain.model import LocalModel
from service.domain.sampling import SamplingParams
from service.vllm_protocol.model_info import loads, model_info, server_info
from tests.fakes.engine import FakeEngine
from tests.fakes.tokenizer import EOS, ByteTokenizer
from tests.support.grpc_server import CARD

MODEL = LocalModel(
    CARD, ByteTokenizer(), FakeEngine(), SamplingParams(), frozenset({EOS, 3}), vocab_size=257
)
STATS = EngineStats(
    max_num_seqs=8,
    num_running=2,
    num_waiting=3,
    num_kv_blocks=10,
    kv_block_size=16,
    num_free_kv_blocks=6,
    num_prefix_cache_queries=100,
    num_prefix_cache_hits=25,
)


def test_model_is_described_by_its_card_and_its_files(tmp_path: Path) -> None:
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "bos_token_id": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text('{"pad_token_id": 5}')
    info = model_info(replace(MODEL, path=tmp_path))
    assert (info.served_model_name, info.model_path, info.tokenizer_path) == (
        "fake",
        "nowhere",
        "chatrpc:nowhere",
    )
    assert (info.max_context_length, info.max_req_input_len, info.vocab_size) == (1000, 999, 257)
    assert (info.model_type, list(info.architectures)) == ("llama", ["LlamaForCausalLM"])
    assert list(info.eos_token_ids) == [3, EOS]
    assert (info.bos_token_id, info.pad_token_id) == (1, 5)
    assert info.is_generation
    assert not info.supports_vision
    assert info.default_sampling_params_json == ""


def test_defaults_of_the_model_are_those_that_differ() -> None:
    defaults = SamplingParams(temperature=0.0, top_k=20, stop=("x",))
    info = model_info(replace(MODEL, sampling_defaults=defaults))
    assert json.loads(info.default_sampling_params_json) == {"temperature": 0.0, "top_k": 20}


def test_load_is_that_of_the_engine() -> None:
    [load] = loads(STATS).loads
    assert (load.num_running_reqs, load.num_waiting_reqs, load.num_total_reqs) == (2, 3, 5)
    assert (load.num_used_tokens, load.max_total_num_tokens, load.token_usage) == (64, 160, 0.4)
    assert (load.cache_hit_rate, load.utilization, load.max_running_requests) == (0.25, 0.25, 8)


def test_load_of_an_engine_without_counts_is_zero() -> None:
    [load] = loads(EngineStats()).loads
    assert (load.token_usage, load.cache_hit_rate, load.utilization) == (0, 0, 0)


def test_server_is_described_by_the_engines_sizes() -> None:
    info = server_info(STATS, 1.5)
    assert (info.active_requests, info.max_num_seqs, info.block_size) == (5, 8, 16)
    assert (info.uptime_seconds, info.data_parallel_size) == (1.5, 1)
    assert (info.server_type, info.constrained_decoding_start) == ("vllm-grpc", "first_token")
