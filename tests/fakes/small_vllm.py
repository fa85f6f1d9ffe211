"""A vLLM that computes with a small engine, so that the engine vllm runs without vLLM."""

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from service.domain.engine import EngineStats, FinishReason, Request, TokenLogprobs, TokenOutput
from service.domain.engine_settings import EngineModel, EngineSettings
from service.domain.sampling import SamplingParams
from service.text.grammars import CompiledGrammars, load_token_trie
from service.text.hf_tokenizer import load_tokenizer
from service.vllm_engine.arguments import settings_arguments
from service.vllm_engine.client import OutputListener, StepListener, VllmClient, VllmLimits
from service.vllm_engine.engine import VllmEngine
from tests.fakes.small_engine import SmallEngine, small_engine
from tests.fakes.vllm_client import FakeCompletion, FakeLogprob, FakeOutput, FakeRequestStats

# Arguments of vLLM's sampling parameters with the names of ours. None means our default.
_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "max_tokens",
    "min_tokens",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
)


class SmallVllm:
    """`service.vllm_engine.client.VllmClient` over a `SmallEngine`, and with its limits.

    As in vLLM, a request whose options allow no token gets a forbidden one.
    """

    def __init__(self, engine: SmallEngine, model: Path, on_step: StepListener) -> None:
        self._engine = engine
        self._on_step = on_step
        self._reported = engine.stats()
        tokenizer = load_tokenizer(model)
        end = tokenizer.special_token_id("<|im_end|>")
        assert end is not None
        trie = load_token_trie(tokenizer.to_json(), tokenizer.vocab_size, [end])
        self._grammars = CompiledGrammars(trie, tokenizer.added_token_ids)
        stats = engine.stats()
        self.is_dead = False
        self.limits = VllmLimits(
            max_model_len=engine.max_model_len,
            max_num_seqs=stats.max_num_seqs,
            max_logprobs=20,
            num_kv_blocks=stats.num_kv_blocks,
            kv_block_size=stats.kv_block_size,
            grammar_end=end,
        )

    async def run(
        self,
        prompt: Mapping[str, Any],
        sampling_arguments: Mapping[str, Any],
        request_id: str,
        priority: int,
        on_output: OutputListener,
    ) -> None:
        """See `service.vllm_engine.client.VllmClient.run`."""
        request = self._request(prompt, sampling_arguments, priority)
        async with aclosing(self._engine.generate(request)) as outputs:
            async for output in outputs:
                if not output.is_progress:
                    goes_on = on_output(self._converted(request, output))
                    self._report()
                    if not goes_on:
                        return

    def stop(self, timeout_s: float) -> None:
        """End nothing: there are no processes."""

    def _request(
        self, prompt: Mapping[str, Any], arguments: Mapping[str, Any], priority: int
    ) -> Request:
        given = {name: arguments[name] for name in _SAMPLING if arguments.get(name) is not None}
        if (allowed := arguments["allowed_token_ids"]) is not None:
            given["allowed_token_ids"] = frozenset(allowed)
        structured = arguments["structured_outputs"]
        return Request(
            tuple(prompt["prompt_token_ids"]),
            SamplingParams(**given),
            frozenset(arguments["stop_token_ids"]),
            cache_salt=prompt.get("cache_salt", ""),
            priority=priority,
            num_logprobs=arguments["logprobs"],
            num_prompt_logprobs=arguments["prompt_logprobs"],
            bad_token_sequences=tuple(map(tuple, arguments["_bad_words_token_ids"] or ())),
            constraint=structured and self._grammars.compile(structured["grammar"]),
        )

    def _converted(self, request: Request, output: TokenOutput) -> FakeOutput:
        """Return an output of the small engine as one of vLLM."""
        token_ids, reason = output.token_ids, output.finish_reason and output.finish_reason.value
        logprobs = [_position(entry) for entry in output.logprobs]
        if output.finish_reason is FinishReason.STOP and not token_ids:
            token_ids, reason = (0,), "error" if request.constraint is not None else None
            logprobs = [_position(TokenLogprobs(0, -9999.0))]
        assert output.timings is not None
        assert output.timings.scheduled_s is not None
        return FakeOutput(
            [FakeCompletion(token_ids, reason, logprobs)],
            request.prompt_token_ids,
            [None, *map(_position, output.prompt_logprobs)] if output.prompt_logprobs else None,
            output.num_cached_tokens,
            FakeRequestStats(output.timings.scheduled_s),
        )

    def _report(self) -> None:
        """Report a step, with what has been counted since the last report."""
        before, now = self._reported, self._engine.stats()
        self._reported = now

        def counted(name: str) -> int:
            difference: int = getattr(now, name) - getattr(before, name)
            return difference

        scheduler_stats = SimpleNamespace(
            num_running_reqs=now.num_running,
            num_waiting_reqs=now.num_waiting,
            num_skipped_waiting_reqs=0,
            kv_cache_usage=_usage(now),
            prefix_cache_stats=SimpleNamespace(
                queries=counted("num_prefix_cache_queries"), hits=counted("num_prefix_cache_hits")
            ),
            spec_decoding_stats=None,
        )
        iteration_stats = SimpleNamespace(num_preempted_reqs=counted("num_preemptions"))
        self._on_step(0, scheduler_stats, iteration_stats)


def _usage(stats: EngineStats) -> float:
    return 1 - stats.num_free_kv_blocks / stats.num_kv_blocks


def _position(entry: TokenLogprobs) -> dict[int, FakeLogprob]:
    ranked = {t: FakeLogprob(logprob, rank) for rank, (t, logprob) in enumerate(entry.top, 1)}
    return {entry.token_id: FakeLogprob(entry.logprob, len(ranked) + 1)} | ranked


def small_vllm_engine(settings: EngineSettings) -> VllmEngine:
    """Return the engine vllm over a `SmallVllm`; see `EngineFactory`."""
    loop = asyncio.get_running_loop()

    def launch(arguments: Mapping[str, Any], on_step: StepListener) -> VllmClient:
        engine = small_engine(settings)
        model = Path(arguments["model"])
        asyncio.run_coroutine_threadsafe(engine.start(EngineModel(model)), loop).result()
        return SmallVllm(engine, model, on_step)

    return VllmEngine(
        settings_arguments(settings),
        launch,
        max_queue_size=settings.max_queue_size,
        step_timeout_s=settings.step_timeout_s,
    )
