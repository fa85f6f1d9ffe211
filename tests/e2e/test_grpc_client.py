"""A gRPC client against the real stack."""

from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chatrpc.v1 import (
    chat_pb2,
    chat_service_pb2,
    chat_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
)
from tests.support.make_serve import MODEL, Served


def params(text: str) -> chat_pb2.ChatCompletionParams:
    return chat_pb2.ChatCompletionParams(
        model=MODEL,
        messages=[
            chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, content=[chat_pb2.ContentPart(text=text)])
        ],
        sampling=chat_pb2.SamplingParams(temperature=0),
    )


def test_chat_over_grpc_answers_a_known_question(served: Served) -> None:
    with grpc.insecure_channel(served.target) as channel:
        stub = chat_service_pb2_grpc.ChatServiceStub(channel)
        question = params("What is the capital of France?")
        whole = stub.CreateChatCompletion(
            chat_service_pb2.CreateChatCompletionRequest(params=question)
        ).completion
        chunks = [
            response.chunk
            for response in stub.StreamChatCompletion(
                chat_service_pb2.StreamChatCompletionRequest(params=question)
            )
        ]
    text = whole.choices[0].message.content[0].text
    assert "Paris" in text
    assert text == "".join(chunk.choices[0].delta.content for chunk in chunks)
    first, again = whole.usage, chunks[-1].usage
    assert again.cached_prompt_tokens > 0  # the first call has cached the prompt
    for usage in (first, again):
        usage.ClearField("cached_prompt_tokens")
    assert again == first


def test_tokenized_text_is_detokenized_to_itself(served: Served) -> None:
    text = "naïve 東京 🎉👩‍👩‍👧 ١٢٣\n\ttabs"
    with grpc.insecure_channel(served.target) as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        tokens = stub.Tokenize(model_service_pb2.TokenizeRequest(model=MODEL, text=text))
        back = stub.Detokenize(
            model_service_pb2.DetokenizeRequest(model=MODEL, token_ids=tokens.token_ids)
        )
    assert back.text == text


def test_health_check_of_each_service_is_serving(served: Served) -> None:
    with grpc.insecure_channel(served.target) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        for name in ("", "liveness", "readiness", "chatrpc.v1.ChatService", MODEL):
            response = health.Check(health_pb2.HealthCheckRequest(service=name))
            assert response.status == health_pb2.HealthCheckResponse.SERVING
