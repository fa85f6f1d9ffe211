"""POST /v1/chat/completions."""

from chatrpc.v1 import chat_pb2
from gateway_http.convert import chat_completions, requests
from gateway_http.convert.chat_chunks import ChunkStream
from gateway_http.protocol.decode import decoder
from gateway_http.protocol.request import ChatCompletionRequest
from gateway_http.protocol.response import ChatCompletion
from gateway_http.routes.generation import Generation, Operation
from gateway_http.upstream import rpcs


def _completion(
    whole: chat_pb2.ChatCompletion, model: str, request: ChatCompletionRequest
) -> ChatCompletion:
    return chat_completions.completion(whole, model, request)


CHAT: Operation[
    ChatCompletionRequest,
    chat_pb2.ChatCompletionParams,
    chat_pb2.ChatCompletion,
    chat_pb2.ChatCompletionChunk,
] = Operation(
    decode=decoder(ChatCompletionRequest),
    params=requests.params,
    names=requests.chat_names,
    create=rpcs.CREATE_CHAT_COMPLETION,
    stream=rpcs.STREAM_CHAT_COMPLETION,
    completion=_completion,
    events=ChunkStream,
)

create_chat_completion = Generation(CHAT)
