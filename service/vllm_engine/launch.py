"""Starts vLLM. Only this module and `busy_waits.py` import it."""

import dataclasses
import json
import os
from collections.abc import Mapping
from enum import EnumType
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from vllm import envs
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMClientError, VLLMError
from vllm.inputs import TokensPrompt
from vllm.inputs.engine import tokens_input
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.loggers import PrometheusStatLogger

from chatrpc_process.errors import ConfigError
from service.domain.engine_settings import EngineSettings
from service.errors import EngineDead, ModelLoadError, StepFailed, first_line
from service.vllm_engine.client import Delivery, OutputListener, StepListener, VllmLimits

_KV_CACHE = "kv_cache_memory_bytes"
# On a CPU this variable, in GiB, takes precedence over the argument.
_KV_CACHE_VARIABLE = "VLLM_CPU_KVCACHE_SPACE"


def launch(
    settings: EngineSettings, arguments: Mapping[str, Any], on_step: StepListener
) -> "AsyncLlmClient":
    """Start vLLM; see `service.vllm_engine.client.Launch`."""
    checked = checked_arguments(settings, arguments)
    try:
        engine_args = AsyncEngineArgs(**checked)
        config = engine_args.create_engine_config(UsageContext.OPENAI_API_SERVER)
        llm = AsyncLLM.from_vllm_config(
            config,
            usage_context=UsageContext.OPENAI_API_SERVER,
            stat_loggers=[_listening(on_step)],
            enable_log_requests=engine_args.enable_log_requests,
            disable_log_stats=True,  # the log line of every ten seconds; ours are metrics
        )
    except Exception as error:  # of settings, files, memory and processes, without a common base
        raise ModelLoadError(f"vLLM cannot serve the model: {first_line(error)}") from error
    return AsyncLlmClient(llm)


def checked_arguments(settings: EngineSettings, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of vLLM's `AsyncEngineArgs` with the types that vLLM expects.

    Args:
        arguments: Values as in JSON, by name.

    Raises:
        ConfigError: An argument is unknown or has a wrong type, the installed build of vLLM does
            not support an option, or a variable overrides one.
    """
    device = current_platform.device_type
    if settings.device not in ("auto", device):
        raise ConfigError(
            f"device={settings.device}: the installed vLLM computes on the device {device!r}."
        )
    if settings.num_threads is not None and device != "cpu":
        raise ConfigError("num_threads has no meaning for vLLM, except on a CPU.")
    if device == "cpu" and _KV_CACHE in arguments and os.environ.get(_KV_CACHE_VARIABLE):
        raise ConfigError(
            f"{_KV_CACHE} and the variable {_KV_CACHE_VARIABLE} are both set: vLLM would ignore "
            f"{_KV_CACHE}. Remove one of them."
        )
    known = dataclasses.fields(AsyncEngineArgs)
    types = {each.name: each.type for each in known if not each.name.startswith("_")}
    if unknown := sorted(arguments.keys() - types.keys()):
        raise ConfigError(f"vllm_args.{unknown[0]} is not an argument of vLLM's AsyncEngineArgs.")
    return {name: _checked(name, value, types[name]) for name, value in arguments.items()}


class AsyncLlmClient:
    """`service.vllm_engine.client.VllmClient` over vLLM's `AsyncLLM`."""

    def __init__(self, llm: AsyncLLM) -> None:
        self.llm = llm
        config = llm.vllm_config
        max_logprobs = config.model_config.max_logprobs
        self.limits = VllmLimits(
            max_model_len=config.model_config.max_model_len,
            max_num_seqs=config.scheduler_config.max_num_seqs
            * config.parallel_config.data_parallel_size,
            max_logprobs=None if max_logprobs == -1 else max_logprobs,
            num_kv_blocks=config.cache_config.num_gpu_blocks or 0,
            kv_block_size=config.cache_config.block_size,
            grammar_end=llm.get_tokenizer().eos_token_id,
            has_drafts=config.speculative_config is not None,
            is_batch_invariant=envs.VLLM_BATCH_INVARIANT,
            quantization=config.model_config.quantization
            or str(config.model_config.dtype).removeprefix("torch."),
        )

    @property
    def is_dead(self) -> bool:
        return bool(self.llm.errored)

    async def run(
        self,
        prompt: Mapping[str, Any],
        sampling_arguments: Mapping[str, Any],
        request_id: str,
        priority: int,
        on_output: OutputListener,
    ) -> None:
        """See `service.vllm_engine.client.VllmClient.run`."""
        delivery = Delivery(on_output)
        try:
            collector = await self.llm.add_request(
                request_id,
                _prompt(prompt, sampling_arguments),
                _sampling_params(sampling_arguments),
                priority=priority,
            )
            # vLLM calls this for each output. Its own method would wake a task.
            collector.put = delivery.put
            if (early := collector.get_nowait()) is not None:
                delivery.put(early)
            await delivery.wait_ended()
        except EngineDeadError as error:
            raise EngineDead from error
        except VLLMClientError as error:
            raise StepFailed(f"vLLM rejects the request: {error}") from error
        except VLLMError as error:
            raise EngineDead if self.is_dead else StepFailed from error
        finally:
            await self.llm.abort(request_id)  # does nothing if vLLM has ended the request

    def stop(self, timeout_s: float) -> None:
        """See `service.vllm_engine.client.VllmClient.stop`."""
        self.llm.shutdown(timeout_s)


def _prompt(prompt: Mapping[str, Any], sampling_arguments: Mapping[str, Any]) -> Any:
    if sampling_arguments["structured_outputs"] is not None:
        # vLLM parses the grammar, which may take long. With this type, it does so on a thread.
        return TokensPrompt(**prompt)
    return tokens_input(**prompt)


def _sampling_params(arguments: Mapping[str, Any]) -> SamplingParams:
    structured = arguments["structured_outputs"]
    return SamplingParams(
        **{
            **arguments,
            "structured_outputs": structured and StructuredOutputsParams(**structured),
            "output_kind": RequestOutputKind.DELTA,
            "skip_clone": True,
        }
    )


def _checked(name: str, value: Any, expected: Any) -> Any:
    """Return an argument's value with the type that vLLM expects.

    Raises:
        ConfigError: The value has a wrong type.
    """
    if isinstance(expected, str):  # a name that vLLM imports for type checkers only
        return value
    for each in get_args(expected) or (expected,):
        if isinstance(each, EnumType) and value in each.__members__:
            return each[value]
    try:
        adapter = TypeAdapter(expected, config={"arbitrary_types_allowed": True})
    except PydanticUserError:  # the type has a configuration of its own
        adapter = TypeAdapter(expected)
    try:
        return adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        [first, *_] = error.errors()
        place = ".".join(map(str, ["vllm_args", name, *first["loc"]]))
        raise ConfigError(f"{place}: {first['msg']}.") from None


def _listening(on_step: StepListener) -> Any:
    """Return a class of vLLM's that passes the statistics of each step to `on_step`.

    It takes the place of vLLM's own Prometheus metrics, which nothing would read.
    """

    class Listener(PrometheusStatLogger):  # type: ignore[misc]  # vLLM is not installed with mypy
        def __init__(self, vllm_config: Any, engine_indexes: Any = None) -> None:
            """Create no metrics."""

        def record(
            self,
            scheduler_stats: Any,
            iteration_stats: Any,
            mm_cache_stats: Any = None,
            engine_idx: int = 0,
        ) -> None:
            on_step(engine_idx, scheduler_stats, iteration_stats)

        def log_engine_initialized(self) -> None:
            """Log nothing."""

    return Listener
