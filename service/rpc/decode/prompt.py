"""Decodes the options of a chat's prompt: protobuf to the domain."""

import json
import re
from typing import Any

from chatrpc.v1 import chat_pb2
from chatrpc.v1.limits import LIMITS
from service.domain.chat import PromptOptions
from service.errors import InvalidField
from service.rpc.decode.limits import check_range

MAX_TEMPLATE_KWARGS_DEPTH = 32  # nested arrays and objects


def prompt_options(
    proto: chat_pb2.PromptOptions, effort: chat_pb2.ReasoningEffort.ValueType
) -> PromptOptions:
    """Return the options of the prompt. The reasoning effort is a variable for the template.

    Raises:
        InvalidField: The template's arguments are not a JSON object, or two options contradict
            each other.
    """
    continues = proto.continue_final_message
    if continues and proto.add_generation_prompt:
        raise InvalidField(
            "prompt.continue_final_message",
            "cannot be used with add_generation_prompt.",
        )
    if proto.HasField("truncate_prompt_tokens"):
        name = "truncate_prompt_tokens"
        check_range(proto.truncate_prompt_tokens, f"PromptOptions.{name}", f"prompt.{name}")
    kwargs: dict[str, Any] = {}
    effort_name = ""
    if effort != chat_pb2.REASONING_EFFORT_UNSPECIFIED:
        name = _enum_name(chat_pb2.ReasoningEffort, effort, "reasoning_effort")
        effort_name = name.removeprefix("REASONING_EFFORT_").lower()
        none = {"enable_thinking": False}
        kwargs |= none if effort_name == "none" else {"reasoning_effort": effort_name}
    if proto.HasField("chat_template_kwargs_json"):
        path = "prompt.chat_template_kwargs_json"
        kwargs |= _json_object(proto.chat_template_kwargs_json, path)
    return PromptOptions(
        template_kwargs=kwargs,
        add_generation_prompt=(
            proto.add_generation_prompt
            if proto.HasField("add_generation_prompt")
            else not continues
        ),
        continue_final_message=continues,
        truncate_prompt_tokens=(
            proto.truncate_prompt_tokens if proto.HasField("truncate_prompt_tokens") else None
        ),
        reasoning_effort=effort_name,
    )


def _json_object(text: str, path: str) -> dict[str, Any]:
    max_size = LIMITS["PromptOptions.chat_template_kwargs_json"].max_size
    if len(text) > max_size:
        raise InvalidField(path, f"The template's arguments have at most {max_size} characters.")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidField(path, "The template's arguments are not valid JSON.") from error
    if not isinstance(value, dict):
        raise InvalidField(path, "The template's arguments must be a JSON object.")
    if _depth(value) > MAX_TEMPLATE_KWARGS_DEPTH:
        raise InvalidField(
            path, f"The template's arguments are nested deeper than {MAX_TEMPLATE_KWARGS_DEPTH}."
        )
    for key in value:
        if not re.fullmatch(r"[A-Za-z_]\w*", key):
            raise InvalidField(path, f"{key!r} cannot be the name of a template argument.")
    return value


def _depth(value: Any) -> int:
    """Return how deep arrays and objects are nested."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [
            item for each in level for item in (each.values() if isinstance(each, dict) else each)
        ]
    return depth


def _enum_name(enum: Any, value: int, path: str) -> str:
    try:
        return str(enum.Name(value))
    except ValueError as error:
        raise InvalidField(path, f"{value} is not a value of this enum.") from error
