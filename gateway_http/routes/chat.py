"""POST /v1/chat/completions."""

from chatrpc.v1 import chat_pb2
from gateway_http.convert import chat_completions, requests
from gateway_http.convert.chat_chunks import ChunkStream
from gateway_http.convert.sampling import spelling
from gateway_http.protocol.decode import decoder
from gateway_http.protocol.request import ChatCompletionRequest
from gateway_http.protocol.response import ChatCompletion
from gateway_http.protocol.sampling import StreamOptions
from gateway_http.routes.generation import Operation
from gateway_http.upstream.client import Upstream


def _answer(whole: chat_pb2.ChatCompletion, _: ChatCompletionRequest) -> ChatCompletion:
    return chat_completions.completion(whole)


def _events(request: ChatCompletionRequest) -> ChunkStream:
    wanted = request.stream_options or StreamOptions()
    return ChunkStream(
        n=request.n or 1,
        include_usage=bool(wanted.include_usage),
        running_usage=bool(wanted.continuous_usage_stats),
    )


CHAT: Operation[
    ChatCompletionRequest,
    chat_pb2.ChatCompletionParams,
    chat_pb2.ChatCompletion,
    chat_pb2.ChatCompletionChunk,
] = Operation(
    decode=decoder(ChatCompletionRequest),
    params=requests.params,
    names=spelling,
    create=Upstream.create_chat,
    answer=_answer,
    stream=Upstream.stream_chat,
    events=_events,
)
