"""A client for chat completions of a chatrpc service, over gRPC."""

import time

import grpc
from google.protobuf.message import DecodeError

from bench.request import Message, Record, Request, Transcript
from chatrpc.v1 import chat_pb2, chat_service_pb2

_METHOD = "/chatrpc.v1.ChatService/StreamChatCompletion"
_ROLES = {
    "system": chat_pb2.ROLE_SYSTEM,
    "user": chat_pb2.ROLE_USER,
    "assistant": chat_pb2.ROLE_ASSISTANT,
}
_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)]


class GrpcClient:
    """A `bench.request.Client` over gRPC. Messages are kept as bytes and parsed after the load."""

    def __init__(self, target: str, model: str, key: str = "") -> None:
        self._model = model
        self._metadata = (("x-api-key", key),) if key else ()
        self._channel = grpc.aio.insecure_channel(target, _OPTIONS)
        self._stream: grpc.aio.UnaryStreamMultiCallable[bytes, bytes]
        self._stream = self._channel.unary_stream(_METHOD)

    async def send(self, transcript: Transcript) -> None:
        request = _proto(self._model, transcript.request).SerializeToString()
        note, clock = transcript.pieces.append, time.perf_counter
        call = self._stream(request, metadata=self._metadata)
        try:
            async for message in call:
                note((clock(), message))
        except grpc.aio.AioRpcError as error:
            transcript.error = f"{error.code().name}: {error.details()}"
        finally:
            call.cancel()

    def read(self, transcript: Transcript) -> Record:
        arrivals: list[float] = []
        text: list[str] = []
        usage, error = chat_pb2.Usage(), transcript.error
        try:
            for time_s, message in transcript.pieces:
                chunk = chat_service_pb2.StreamChatCompletionResponse.FromString(message).chunk
                if chunk.HasField("usage"):
                    usage = chunk.usage
                if piece := "".join(
                    choice.delta.content + choice.delta.reasoning_content
                    for choice in chunk.choices
                ):
                    arrivals.append(time_s)
                    text.append(piece)
        except DecodeError as malformed:
            error = error or f"malformed message: {malformed}"
        return Record(
            due_s=transcript.due_s,
            arrivals_s=tuple(arrivals),
            text="".join(text),
            num_requested=transcript.request.num_tokens,
            num_output_tokens=usage.completion_tokens,
            num_prompt_tokens=usage.prompt_tokens,
            num_cached_tokens=usage.cached_prompt_tokens,
            error=error,
        )

    async def close(self) -> None:
        await self._channel.close()


def _proto(model: str, request: Request) -> chat_service_pb2.StreamChatCompletionRequest:
    sampling = chat_pb2.SamplingParams(
        temperature=0, max_completion_tokens=request.num_tokens, ignore_eos=True
    )
    messages = map(_message, request.messages)
    return chat_service_pb2.StreamChatCompletionRequest(
        params=chat_pb2.ChatCompletionParams(model=model, messages=messages, sampling=sampling)
    )


def _message(message: Message) -> chat_pb2.ChatMessage:
    return chat_pb2.ChatMessage(
        role=_ROLES[message.role], content=[chat_pb2.ContentPart(text=message.content)]
    )
