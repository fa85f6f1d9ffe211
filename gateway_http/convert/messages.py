"""Converts OpenAI's messages to the proto's."""

import base64

from chatrpc.v1 import chat_pb2
from gateway_http.convert.aliases import first_given
from gateway_http.convert.json_text import json_text
from gateway_http.protocol import request as openai
from gateway_http.protocol.error import InvalidRequest, UnsupportedParameter

ROLES = {
    "system": chat_pb2.ROLE_SYSTEM,
    "developer": chat_pb2.ROLE_DEVELOPER,
    "user": chat_pb2.ROLE_USER,
    "assistant": chat_pb2.ROLE_ASSISTANT,
    "tool": chat_pb2.ROLE_TOOL,
}
"""The proto's roles, by their names in all APIs over HTTP."""


def chat_message(message: openai.Message, param: str) -> chat_pb2.ChatMessage:
    """Convert a message.

    Args:
        message: The message.
        param: Its path in the body, for errors.

    Raises:
        InvalidRequest: The proto has no equivalent of the message.
    """
    if message.role == "function":
        raise InvalidRequest(
            "Unsupported value: 'function' messages are not supported. Use the role 'tool'.",
            f"{param}.role",
            "unsupported_value",
        )
    if message.content is None and message.role != "assistant":
        raise InvalidRequest(
            f"Missing required parameter: '{param}.content'.",
            f"{param}.content",
            "missing_required_parameter",
        )
    for name in ("audio", "function_call"):
        if getattr(message, name) is not None:
            raise UnsupportedParameter(f"{param}.{name}")
    return chat_pb2.ChatMessage(
        role=ROLES[message.role],
        content=content_parts(message.content, f"{param}.content"),
        name=message.name or "",
        tool_calls=[_tool_call(call, i) for i, call in enumerate(message.tool_calls or ())],
        tool_call_id=message.tool_call_id or "",
        reasoning_content=first_given(message.reasoning_content, message.reasoning) or "",
        refusal=message.refusal or _refusal(message.content),
    )


def content_parts(
    content: str | list[openai.ContentPart] | None, param: str
) -> list[chat_pb2.ContentPart]:
    """Convert the content of a message, without its refusals.

    Args:
        content: The content.
        param: Its path in the body, for errors.

    Raises:
        InvalidRequest: A part is malformed.
    """
    if content is None:
        return []
    if isinstance(content, str):
        return [chat_pb2.ContentPart(text=content)]
    return [
        _part(part, f"{param}[{i}]")
        for i, part in enumerate(content)
        if not isinstance(part, openai.RefusalPart)
    ]


def _refusal(content: str | list[openai.ContentPart] | None) -> str:
    if content is None or isinstance(content, str):
        return ""
    return "".join(part.refusal for part in content if isinstance(part, openai.RefusalPart))


def _part(
    part: openai.TextPart | openai.ImagePart | openai.AudioPart | openai.FilePart, param: str
) -> chat_pb2.ContentPart:
    match part:
        case openai.TextPart():
            return chat_pb2.ContentPart(text=part.text)
        case openai.ImagePart(image_url=image):
            return chat_pb2.ContentPart(
                image=chat_pb2.ImageContent(url=image.url, detail=image.detail or "")
            )
        case openai.AudioPart(input_audio=audio):
            return chat_pb2.ContentPart(
                audio=chat_pb2.AudioContent(data=audio.data, format=audio.format)
            )
        case openai.FilePart(file=file):
            return chat_pb2.ContentPart(file=file_content(file, f"{param}.file"))


def file_content(file: openai.InputFile, param: str) -> chat_pb2.FileContent:
    """Convert a file, whose path in the body is `param`.

    Raises:
        InvalidRequest: Its bytes are not valid base64.
    """
    filename = file.filename or ""
    if file.file_id is not None:
        return chat_pb2.FileContent(file_id=file.file_id, filename=filename)
    try:
        data = base64.b64decode((file.file_data or "").rpartition(",")[2], validate=True)
    except ValueError:
        raise InvalidRequest(
            f"Invalid '{param}.file_data': expected base64.", f"{param}.file_data", "invalid_value"
        ) from None
    return chat_pb2.FileContent(data=data, filename=filename)


def _tool_call(call: openai.ToolCall, index: int) -> chat_pb2.ToolCall:
    arguments = call.function.arguments
    return chat_pb2.ToolCall(
        id=call.id,
        index=index,
        function=chat_pb2.FunctionCall(
            name=call.function.name,
            arguments_json=arguments if isinstance(arguments, str) else json_text(arguments),
        ),
    )
