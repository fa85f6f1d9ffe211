"""VllmEngine: vLLM's token-level protocol, over the models of this service."""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Coroutine, Iterator
from contextlib import aclosing

import structlog
from smg_grpc_proto.generated import common_pb2, vllm_engine_pb2

from chatrpc.v1.limits import REQUEST_ID_PATTERN
from service.domain.completion import CompletionRequest
from service.domain.model import LocalModel
from service.errors import InvalidField, Starting, UnsupportedMethod
from service.rpc.calls.caller import current_caller, note_abort
from service.rpc.calls.context import Context
from service.rpc.calls.initial_metadata import with_admission_metadata
from service.rpc.calls.work_pools import WorkPools
from service.rpc.decode.sampling import num_choices
from service.rpc.generation_calls import Decoder, GenerationCalls
from service.rpc.serving.lifecycle import Lifecycle
from service.vllm_protocol.decode import GenerateParams, completion_request
from service.vllm_protocol.encode import GenerateEncoder, GenerateOutput
from service.vllm_protocol.model_info import loads, model_info, server_info
from service.vllm_protocol.running_requests import RunningRequests
from service.vllm_protocol.tokenizer_bundle import TokenizerBundle, load_tokenizer_bundle

# The protocol has no priority: a request has the default one.
_DECODER: Decoder[GenerateParams, CompletionRequest] = Decoder(
    service="VllmEngine",
    num_sequences=lambda params, most: num_choices(params.sampling, most),
    priority=lambda _, caller: caller.default_priority,
    request=completion_request,
)


class VllmEngineServicer:
    """The RPCs of `vllm.grpc.engine.VllmEngine` that are served.

    Args:
        generations: Runs the generations.
        pools: Threads for packing the tokenizer.
    """

    def __init__(
        self, lifecycle: Lifecycle, generations: GenerationCalls, pools: WorkPools
    ) -> None:
        self._lifecycle = lifecycle
        self._generations = generations
        self._pools = pools
        self._running = RunningRequests()
        self._started_s = time.monotonic()
        self._tokenizer: TokenizerBundle | None = None
        self._packing = asyncio.Lock()

    async def Generate(
        self, params: GenerateParams, context: Context
    ) -> AsyncGenerator[GenerateOutput, None]:
        """Generate from a prompt. Cancelling the call aborts its generation, and so does `Abort`.

        After `Abort` the call ends with OK, and the finish reason of its unfinished sequences is
        `abort`.
        """
        if not params.model:
            raise Starting
        _log_request_id(params.request_id)
        encoder = GenerateEncoder(params)
        with self._running.added(current_caller().name, params.request_id) as running:
            try:
                async with aclosing(
                    with_admission_metadata(self._encoded(params, context, encoder), context)
                ) as batches:
                    async for batch in batches:
                        if encoder.is_finished:
                            break
                        for output in batch:
                            async with running.paused(batches):
                                yield output
                        if running.is_aborted:
                            break
            except asyncio.CancelledError:
                if not running.end_cancellation():
                    raise
        if running.is_aborted and not encoder.is_finished:
            note_abort()
            encoder.abort()
        for output in encoder.take():
            yield output

    async def _encoded(
        self, params: GenerateParams, context: Context, encoder: GenerateEncoder
    ) -> AsyncGenerator[Iterator[GenerateOutput], None]:
        """Add the generation to `encoder`. Yield its messages when there are some to take."""
        async with self._generations.admitted(
            _DECODER, params, context, is_streamed=params.is_streamed
        ) as generation:
            encoder.note_prompt(generation.prompts[0].num_tokens or 0)
            async for delta in generation.deltas:
                encoding = self._generations.encode(encoder.push, delta, [delta])
                # Only log probabilities take so long that a thread encodes them.
                if await (_to_its_end(encoding) if delta.num_logprobs else encoding):
                    yield encoder.take()

    async def Abort(
        self, request: vllm_engine_pb2.AbortRequest, context: Context
    ) -> vllm_engine_pb2.AbortResponse:
        """Abort the caller's running requests with these ids. Other ids are ignored."""
        self._running.abort(current_caller().name, request.request_ids)
        return vllm_engine_pb2.AbortResponse()

    async def HealthCheck(
        self, request: vllm_engine_pb2.HealthCheckRequest, context: Context
    ) -> vllm_engine_pb2.HealthCheckResponse:
        """Return True if the service is ready, as `grpc.health.v1` reports it."""
        is_ready = self._lifecycle.is_ready
        return vllm_engine_pb2.HealthCheckResponse(
            healthy=is_ready, message="ready" if is_ready else "not ready"
        )

    async def GetModelInfo(
        self, request: vllm_engine_pb2.GetModelInfoRequest, context: Context
    ) -> vllm_engine_pb2.GetModelInfoResponse:
        return model_info(self._model("GetModelInfo"))

    async def GetServerInfo(
        self, request: vllm_engine_pb2.GetServerInfoRequest, context: Context
    ) -> vllm_engine_pb2.GetServerInfoResponse:
        stats = self._model("GetServerInfo").engine.stats()
        return server_info(stats, time.monotonic() - self._started_s)

    async def GetLoads(
        self, request: vllm_engine_pb2.GetLoadsRequest, context: Context
    ) -> vllm_engine_pb2.GetLoadsResponse:
        """Return the engine's load: the section `core`, whatever sections the request names."""
        if request.dp_rank != 0:
            raise InvalidField("dp_rank", "must be 0, because there is one rank.")
        return loads(self._model("GetLoads").engine.stats())

    async def GetTokenizer(
        self, request: common_pb2.GetTokenizerRequest, context: Context
    ) -> AsyncGenerator[common_pb2.GetTokenizerChunk, None]:
        path = self._model("GetTokenizer").path
        if path is None:
            raise UnsupportedMethod("GetTokenizer", self._model("GetTokenizer").card.id)
        async with self._packing:
            if self._tokenizer is None:
                self._tokenizer = await self._pools.text(load_tokenizer_bundle, path)
        for chunk in self._tokenizer.chunks():
            yield chunk

    def _model(self, method: str) -> LocalModel:
        """Return the served model.

        Raises:
            Starting: It is not loaded yet.
            UnsupportedMethod: It is not in this process.
        """
        if not self._lifecycle.models:
            raise Starting
        [served] = self._lifecycle.models
        if served.local is None:
            raise UnsupportedMethod(method, served.card.id)
        return served.local


async def _to_its_end(encoding: Coroutine[None, None, bool]) -> bool:
    """Return the result of `encoding`. A cancellation of the task is raised after its end."""
    task = asyncio.ensure_future(encoding)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise


def _log_request_id(request_id: str) -> None:
    """Add the id in the request to its log lines, if it is short and printable."""
    if re.fullmatch(REQUEST_ID_PATTERN, request_id):
        structlog.contextvars.bind_contextvars(client_request_id=request_id)
