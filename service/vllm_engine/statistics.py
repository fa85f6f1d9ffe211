"""Adds up vLLM's statistics of steps."""

from dataclasses import dataclass
from typing import Any

from service.domain.engine import EngineStats
from service.vllm_engine.client import VllmLimits


@dataclass(slots=True)
class _Core:
    """The latest load of one core."""

    num_running: int = 0
    num_waiting: int = 0
    kv_cache_usage: float = 0.0  # the fraction of the blocks that sequences use


class Statistics:
    """The counts of all cores of a running vLLM since its start."""

    def __init__(self) -> None:
        self._cores: dict[int, _Core] = {}
        self._num_preemptions = 0
        self._num_steps = 0
        self._num_prefix_cache_queries = 0
        self._num_prefix_cache_hits = 0
        self._num_draft_tokens = 0
        self._num_accepted_tokens = 0

    @property
    def num_steps(self) -> int:
        return self._num_steps

    def add(self, core: int, scheduler_stats: Any, iteration_stats: Any) -> None:
        """Add a step.

        Args:
            core: Index of the core.
            scheduler_stats: vLLM's `SchedulerStats`, or None.
            iteration_stats: vLLM's `IterationStats`; None if the step had no output.
        """
        self._num_steps += 1
        if iteration_stats is not None:
            self._num_preemptions += iteration_stats.num_preempted_reqs
        if scheduler_stats is None:
            return
        self._cores[core] = _Core(
            scheduler_stats.num_running_reqs,
            scheduler_stats.num_waiting_reqs + scheduler_stats.num_skipped_waiting_reqs,
            scheduler_stats.kv_cache_usage,
        )
        self._num_prefix_cache_queries += scheduler_stats.prefix_cache_stats.queries
        self._num_prefix_cache_hits += scheduler_stats.prefix_cache_stats.hits
        drafts = scheduler_stats.spec_decoding_stats
        if drafts is not None:
            self._num_draft_tokens += drafts.num_draft_tokens
            self._num_accepted_tokens += drafts.num_accepted_tokens

    def engine_stats(self, limits: VllmLimits, num_submitted: int, num_queued: int) -> EngineStats:
        """Return the statistics.

        Args:
            num_submitted: Number of unfinished sequences in vLLM. After requests are aborted, vLLM
                makes no step if it has no other request, and its latest load is out of date.
            num_queued: Number of sequences that wait outside of vLLM.
        """
        cores = list(self._cores.values()) if num_submitted else []
        num_running = min(num_submitted, sum(core.num_running for core in cores))
        usage = sum(core.kv_cache_usage for core in cores) / max(1, len(cores))
        return EngineStats(
            max_num_seqs=limits.max_num_seqs,
            num_running=num_running,
            num_waiting=num_submitted - num_running + num_queued,
            num_kv_blocks=limits.num_kv_blocks,
            kv_block_size=limits.kv_block_size,
            num_free_kv_blocks=round(limits.num_kv_blocks * (1 - usage)),
            num_preemptions=self._num_preemptions,
            num_steps=self._num_steps,
            num_prefix_cache_queries=self._num_prefix_cache_queries,
            num_prefix_cache_hits=self._num_prefix_cache_hits,
            num_draft_tokens=self._num_draft_tokens,
            num_accepted_tokens=self._num_accepted_tokens,
        )
