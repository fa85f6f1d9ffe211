"""The sums of vLLM's statistics."""

from types import SimpleNamespace
from typing import Any

from service.vllm_engine.client import VllmLimits
from service.vllm_engine.statistics import Statistics

LIMITS = VllmLimits(100, 8, 20, num_kv_blocks=40, kv_block_size=16)


def scheduler_stats(**changes: Any) -> Any:
    fields = {
        "num_running_reqs": 2,
        "num_waiting_reqs": 1,
        "num_skipped_waiting_reqs": 1,
        "kv_cache_usage": 0.5,
        "prefix_cache_stats": SimpleNamespace(queries=10, hits=4),
        "spec_decoding_stats": SimpleNamespace(num_draft_tokens=5, num_accepted_tokens=3),
    }
    return SimpleNamespace(**fields | changes)


def iteration_stats(num_preempted: int) -> Any:
    return SimpleNamespace(num_preempted_reqs=num_preempted)


def test_counts_are_added_up_and_the_load_is_the_latest() -> None:
    statistics = Statistics()
    statistics.add(0, scheduler_stats(), iteration_stats(1))
    statistics.add(0, scheduler_stats(num_running_reqs=3, kv_cache_usage=0.25), iteration_stats(2))
    statistics.add(0, None, None)
    stats = statistics.engine_stats(LIMITS, num_submitted=5, num_queued=7)
    assert (stats.max_num_seqs, stats.num_kv_blocks, stats.kv_block_size) == (8, 40, 16)
    assert (stats.num_running, stats.num_waiting, stats.num_free_kv_blocks) == (3, 9, 30)
    assert (stats.num_steps, stats.num_preemptions) == (3, 3)
    assert (stats.num_prefix_cache_queries, stats.num_prefix_cache_hits) == (20, 8)
    assert (stats.num_draft_tokens, stats.num_accepted_tokens) == (10, 6)


def test_load_of_several_cores_is_their_sum() -> None:
    statistics = Statistics()
    statistics.add(0, scheduler_stats(kv_cache_usage=0.0), None)
    statistics.add(1, scheduler_stats(num_running_reqs=4, kv_cache_usage=1.0), None)
    stats = statistics.engine_stats(LIMITS, num_submitted=8, num_queued=0)
    assert (stats.num_running, stats.num_waiting, stats.num_free_kv_blocks) == (6, 2, 20)


def test_vllm_without_requests_has_no_load_whatever_it_reported_last() -> None:
    statistics = Statistics()
    statistics.add(0, scheduler_stats(), None)
    stats = statistics.engine_stats(LIMITS, num_submitted=0, num_queued=1)
    assert (stats.num_running, stats.num_waiting, stats.num_free_kv_blocks) == (0, 1, 40)
