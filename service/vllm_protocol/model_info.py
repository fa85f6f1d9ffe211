"""Describes the model, the service and its load in the messages of vLLM's protocol."""

import json
from collections.abc import Iterable
from dataclasses import fields
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from smg_grpc_proto.generated import vllm_engine_pb2

from service.domain.engine import EngineStats
from service.domain.model import LocalModel
from service.domain.sampling import SamplingParams
from service.json_file import read_json_object

# The parameters whose defaults a gateway fills in.
_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def model_info(model: LocalModel) -> vllm_engine_pb2.GetModelInfoResponse:
    """Return the description of a model. `model_path` is not a path, but the model's origin.

    smg looks for `tokenizer_path` on its disk and on the Hugging Face hub before it calls
    `GetTokenizer`. So it is a name that neither of them can have.

    Raises:
        ModelLoadError: A file of the model cannot be read any more.
    """
    card = model.card
    config, generation = _config(model.path), _generation_config(model.path)
    text = config.get("text_config") or config
    return vllm_engine_pb2.GetModelInfoResponse(
        model_path=card.root,
        is_generation=True,
        max_context_length=card.max_model_len,
        vocab_size=model.vocab_size,
        supports_vision=False,
        served_model_name=card.id,
        tokenizer_path=f"chatrpc:{card.root}",
        model_type=str(config.get("model_type", "")),
        architectures=[str(name) for name in config.get("architectures") or ()],
        eos_token_ids=sorted(model.eos_token_ids),
        pad_token_id=_token_id("pad_token_id", (generation, config, text)),
        bos_token_id=_token_id("bos_token_id", (generation, config, text)),
        max_req_input_len=card.max_model_len - 1,
        default_sampling_params_json=_defaults_json(model.sampling_defaults),
    )


def server_info(stats: EngineStats, uptime_s: float) -> vllm_engine_pb2.GetServerInfoResponse:
    """Return the description of the service, without the fields of features that it lacks."""
    return vllm_engine_pb2.GetServerInfoResponse(
        active_requests=stats.num_running + stats.num_waiting,
        uptime_seconds=uptime_s,
        server_type="vllm-grpc",  # the name of the protocol
        data_parallel_size=1,
        block_size=stats.kv_block_size,
        max_num_seqs=stats.max_num_seqs,
        constrained_decoding_start="first_token",
    )


def loads(stats: EngineStats) -> vllm_engine_pb2.GetLoadsResponse:
    """Return the load of the engine. Throughput and queued tokens are not measured, and are 0."""
    num_used = stats.num_kv_blocks - stats.num_free_kv_blocks
    load = vllm_engine_pb2.SchedulerLoad(
        num_running_reqs=stats.num_running,
        num_waiting_reqs=stats.num_waiting,
        num_total_reqs=stats.num_running + stats.num_waiting,
        num_used_tokens=num_used * stats.kv_block_size,
        max_total_num_tokens=stats.num_kv_blocks * stats.kv_block_size,
        token_usage=_share(num_used, stats.num_kv_blocks),
        cache_hit_rate=_share(stats.num_prefix_cache_hits, stats.num_prefix_cache_queries),
        utilization=_share(stats.num_running, stats.max_num_seqs),
        max_running_requests=stats.max_num_seqs,
    )
    return vllm_engine_pb2.GetLoadsResponse(
        timestamp=datetime.now(UTC).isoformat(),
        version=f"chatrpc-{version('chatrpc')}",
        dp_rank_count=1,
        loads=[load],
    )


def _config(path: Path | None) -> dict[str, Any]:
    return {} if path is None else read_json_object(path / "config.json")


def _generation_config(path: Path | None) -> dict[str, Any]:
    return {} if path is None else read_json_object(path / "generation_config.json")


def _token_id(name: str, configs: Iterable[dict[str, Any]]) -> int:
    """Return the first id that has this name in one of the files; 0 if there is none."""
    ids = (config.get(name) for config in configs)
    return next((token_id for token_id in ids if isinstance(token_id, int)), 0)


def _defaults_json(defaults: SamplingParams) -> str:
    """Return the defaults that differ from those of the protocol, as JSON; "" if none does."""
    plain = SamplingParams()
    differing = {
        field.name: getattr(defaults, field.name)
        for field in fields(SamplingParams)
        if field.name in _DEFAULTS and getattr(defaults, field.name) != getattr(plain, field.name)
    }
    return json.dumps(differing) if differing else ""


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
