"""POST /v1/completions."""

from chatrpc.v1 import completion_pb2
from gateway_http.convert import completions
from gateway_http.protocol.completion import CompletionRequest
from gateway_http.protocol.decode import decoder
from gateway_http.routes.generation import Generation, Operation
from gateway_http.upstream import rpcs

COMPLETIONS: Operation[
    CompletionRequest,
    completion_pb2.CompletionParams,
    completion_pb2.Completion,
    completion_pb2.CompletionChunk,
] = Operation(
    decode=decoder(CompletionRequest),
    params=completions.params,
    names=completions.sent_names,
    create=rpcs.CREATE_COMPLETION,
    stream=rpcs.STREAM_COMPLETION,
    completion=completions.completion,
    events=completions.CompletionStream,
)

create_completion = Generation(COMPLETIONS)
