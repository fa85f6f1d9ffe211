"""Descriptions of models in OpenAI's form."""

from datetime import date
from typing import Any

import msgspec

from chatrpc.v1 import model_service_pb2
from gateway_http.convert import models
from tests.fakes.chat_service import model


def as_json(description: model_service_pb2.Model, name: str) -> Any:
    return msgspec.json.decode(
        msgspec.json.encode(models.model(description, name, ("nick",), date(2027, 3, 31)))
    )


def test_model_is_converted_under_its_public_name() -> None:
    assert as_json(model("service/name"), "a/b") == {
        "id": "a/b",
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "tests",
        "aliases": ["nick"],
        "shutdown_date": "2027-03-31",
        "max_model_len": 2048,
        "context_length": 2048,
        "context_window": 2048,
        "max_output_tokens": 2047,
        "max_completion_tokens": 2047,
        "root": "hub/tiny",
        "engine": "fake",
        "quantization": "int8",
        "tasks": ["generate", "embed"],
        "capabilities": {
            "unsupported_parameters": ["bad_words", "priority", "structured_outputs.regex"],
            "input_modalities": ["text", "image"],
            "embeddings": True,
            "tokenization": True,
            "structured_outputs": True,
            "max_logprobs": 5,
            "is_batch_invariant": True,
            "output_modalities": ["text"],
            "tools": True,
            "reasoning": False,
        },
    }


def test_model_without_a_description_has_no_details() -> None:
    bare = model_service_pb2.Model(owned_by="unknown")
    expected = {"id": "m", "object": "model", "created": 0, "owned_by": "unknown"}
    assert as_json(bare, "m") == {
        **expected,
        "aliases": ["nick"],
        "shutdown_date": "2027-03-31",
    }


def test_model_without_a_shutdown_date_has_null() -> None:
    bare = msgspec.json.encode(models.model(model_service_pb2.Model(), "m", ()))
    assert msgspec.json.decode(bare)["shutdown_date"] is None


def test_reasoning_that_is_unknown_is_left_out() -> None:
    description = model()
    description.capabilities.ClearField("reasoning")
    assert "reasoning" not in as_json(description, "m")["capabilities"]


def test_modality_of_a_later_version_is_left_out() -> None:
    description = model()
    description.capabilities.input_modalities.append(99)  # type: ignore[arg-type]  # of no enum
    assert as_json(description, "m")["capabilities"]["input_modalities"] == ["text", "image"]


def test_task_of_a_later_version_is_left_out() -> None:
    description = model()
    description.capabilities.tasks.append(99)  # type: ignore[arg-type]  # of no enum
    assert as_json(description, "m")["tasks"] == ["generate", "embed"]
