"""Descriptions of models in OpenAI's form."""

from typing import Any

import msgspec

from chatrpc.v1 import model_service_pb2
from gateway_http.convert import models
from tests.fakes.chat_service import model


def as_json(description: model_service_pb2.Model, name: str) -> Any:
    return msgspec.json.decode(msgspec.json.encode(models.model(description, name)))


def test_model_is_converted_under_its_public_name() -> None:
    assert as_json(model("service/name"), "a/b") == {
        "id": "a/b",
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "tests",
        "max_model_len": 2048,
        "root": "hub/tiny",
        "engine": "fake",
        "capabilities": {
            "unsupported_parameters": ["bad_words", "priority", "structured_outputs.regex"],
            "input_modalities": ["text", "image"],
            "embeddings": True,
            "tokenization": True,
            "structured_outputs": True,
            "max_logprobs": 5,
            "is_batch_invariant": True,
        },
    }


def test_model_without_a_description_has_no_details() -> None:
    bare = model_service_pb2.Model(owned_by="unknown")
    expected = {"id": "m", "object": "model", "created": 0, "owned_by": "unknown"}
    assert as_json(bare, "m") == expected


def test_modality_of_a_later_version_is_left_out() -> None:
    description = model()
    description.capabilities.input_modalities.append(99)  # type: ignore[arg-type]  # of no enum
    assert as_json(description, "m")["capabilities"]["input_modalities"] == ["text", "image"]
