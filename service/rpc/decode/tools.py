"""Decodes tools and response formats: protobuf to the domain."""

import re
from collections.abc import Sequence

from chatrpc.v1 import chat_pb2
from chatrpc.v1.limits import LIMITS
from service.domain.chat import ResponseFormat, ResponseFormatKind, Tool, ToolMode
from service.errors import InvalidField, MissingField

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_NAME_LIMITS = LIMITS["FunctionDefinition.name"]
_MODES = {
    chat_pb2.ToolChoice.MODE_AUTO: ToolMode.AUTO,
    chat_pb2.ToolChoice.MODE_REQUIRED: ToolMode.REQUIRED,
}


def tools_and_mode(params: chat_pb2.ChatCompletionParams) -> tuple[tuple[Tool, ...], ToolMode]:
    """Return the tools that may be called, and the mode: if a tool may or must be called.

    Raises:
        InvalidField or a subclass.
    """
    tools = decoded_tools(params.tools)
    by_name = {tool.name: tool for tool in tools}
    choice = params.tool_choice
    match choice.WhichOneof("choice"):
        case None:
            return tools, ToolMode.AUTO
        case "function_name":
            field = "tool_choice.function_name"
            return _named([choice.function_name], by_name, field), ToolMode.NAMED
        case "allowed_tools":
            field = "tool_choice.allowed_tools.function_names"
            if not choice.allowed_tools.function_names:
                raise MissingField(field)
            max_size = LIMITS["AllowedTools.function_names"].max_size
            if len(choice.allowed_tools.function_names) > max_size:
                raise InvalidField(field, f"A request may have at most {max_size} tools.")
            mode = _mode(choice.allowed_tools.mode, "tool_choice.allowed_tools.mode")
            return _named(choice.allowed_tools.function_names, by_name, field), mode
        case _:
            if choice.mode == chat_pb2.ToolChoice.MODE_NONE:
                return (), ToolMode.AUTO
            mode = _mode(choice.mode, "tool_choice.mode")
            if mode is ToolMode.REQUIRED and not tools:
                raise InvalidField(
                    "tool_choice.mode", "A tool call is required, but there is no tool."
                )
            return tools, mode


def decoded_tools(protos: Sequence[chat_pb2.Tool], path: str = "tools") -> tuple[Tool, ...]:
    """Return the tools of a request.

    Args:
        path: The path of the tools, for errors.

    Raises:
        InvalidField or a subclass.
    """
    check_num_tools(protos, path)
    tools = tuple(_tool(proto, f"{path}[{i}].function") for i, proto in enumerate(protos))
    names: set[str] = set()
    for i, tool in enumerate(tools):
        if tool.name in names:
            raise InvalidField(
                f"{path}[{i}].function.name", f"There are two functions {tool.name!r}."
            )
        names.add(tool.name)
    return tools


def check_num_tools(tools: Sequence[chat_pb2.Tool], path: str = "tools") -> None:
    """Raise InvalidField if there are more tools than a request may have."""
    max_size = LIMITS["ChatCompletionParams.tools"].max_size
    if len(tools) > max_size:
        raise InvalidField(path, f"A request may have at most {max_size} tools.")


def response_format(params: chat_pb2.ChatCompletionParams, mode: ToolMode) -> ResponseFormat | None:
    """Return the format that the output must have; None for free text.

    Raises:
        InvalidField: The output must be a tool call instead.
    """
    wanted = decoded_format(params.response_format)
    if wanted is not None and mode is not ToolMode.AUTO:
        raise InvalidField(
            "response_format",
            "A response format cannot be used if the tool choice forces a tool call.",
        )
    return wanted


def decoded_format(proto: chat_pb2.ResponseFormat) -> ResponseFormat | None:
    """Return a response format; None for free text."""
    kind = proto.WhichOneof("format")
    field = f"response_format.{kind}"
    match kind:
        case "json_object":
            return ResponseFormat(ResponseFormatKind.JSON_OBJECT, field=field)
        case "json_schema":
            # Some clients send no schema to allow any JSON object.
            return ResponseFormat(
                ResponseFormatKind.JSON_SCHEMA,
                proto.json_schema.schema_json or "{}",
                proto.json_schema.strict,
                field=f"{field}.schema_json",
                name=proto.json_schema.name,
                description=proto.json_schema.description,
            )
        case "regex":
            return ResponseFormat(ResponseFormatKind.REGEX, proto.regex, field=field)
        case "grammar":
            return ResponseFormat(ResponseFormatKind.GRAMMAR, proto.grammar, field=field)
        case "choice":
            choices = tuple(proto.choice.choices)
            return ResponseFormat(
                ResponseFormatKind.CHOICE, choices=choices, field=f"{field}.choices"
            )
        case _:
            return None


def _tool(proto: chat_pb2.Tool, field: str) -> Tool:
    if not proto.HasField("function"):
        raise MissingField(field)
    function = proto.function
    if not function.name:
        raise MissingField(f"{field}.name")
    if len(function.name) > _NAME_LIMITS.max_size or not _NAME.fullmatch(function.name):
        raise InvalidField(
            f"{field}.name",
            f"A function's name has {_NAME_LIMITS.min_size} to {_NAME_LIMITS.max_size} letters, "
            "digits, underscores and dashes.",
        )
    return Tool(
        function.name,
        function.description,
        function.parameters_json_schema,
        function.strict,
        schema_field=f"{field}.parameters_json_schema",
    )


def _named(names: Sequence[str], by_name: dict[str, Tool], field: str) -> tuple[Tool, ...]:
    for name in names:
        if name not in by_name:
            raise InvalidField(field, f"There is no tool {name!r}.")
    return tuple(tool for tool in by_name.values() if tool.name in set(names))


def _mode(mode: chat_pb2.ToolChoice.Mode.ValueType, field: str) -> ToolMode:
    if mode not in _MODES:
        raise InvalidField(field, "must be auto or required.")
    return _MODES[mode]
