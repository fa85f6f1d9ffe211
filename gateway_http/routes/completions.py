"""POST /v1/completions."""

from chatrpc.v1 import completion_pb2
from gateway_http.convert import completions
from gateway_http.protocol.completion import CompletionRequest
from gateway_http.protocol.decode import decoder
from gateway_http.routes.generation import Operation
from gateway_http.upstream.client import Upstream

COMPLETIONS: Operation[
    CompletionRequest,
    completion_pb2.CompletionParams,
    completion_pb2.Completion,
    completion_pb2.CompletionChunk,
] = Operation(
    decode=decoder(CompletionRequest),
    params=completions.params,
    names=completions.names,
    create=Upstream.create_completion,
    answer=completions.completion,
    stream=Upstream.stream_completion,
    events=completions.CompletionStream,
)
