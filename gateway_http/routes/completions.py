"""POST /v1/completions."""

from chatrpc.v1 import completion_pb2
from gateway_http.convert import completions
from gateway_http.protocol.completion import Completion, CompletionRequest
from gateway_http.protocol.decode import decoder
from gateway_http.routes.generation import Operation
from gateway_http.upstreams import CallOptions, Upstream


async def _create(
    upstream: Upstream,
    params: completion_pb2.CompletionParams,
    options: CallOptions,
    request: CompletionRequest,
) -> Completion:
    return completions.completion(await upstream.create_completion(params, options), request)


COMPLETIONS: Operation[
    CompletionRequest, completion_pb2.CompletionParams, completion_pb2.CompletionChunk
] = Operation(
    decode=decoder(CompletionRequest),
    params=completions.params,
    names=completions.names,
    create=_create,
    stream=Upstream.stream_completion,
    events=completions.CompletionStream,
)
