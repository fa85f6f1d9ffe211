"""Tools in prompts: for templates that accept tools, and as text for templates that do not."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from service.domain.chat import Message, Tool
from service.text.tool_calls.syntax import CallSyntax

_INSTRUCTIONS = """\
You can call functions. They are, as JSON:

{tools}

If a function helps with the request, call it: answer with nothing but the call, written exactly \
like this, its arguments as the function's parameters demand:

{example}

What it returns comes in the next message. Otherwise answer as usual."""

_RESULT = "<tool_response>\n{}\n</tool_response>"

# Mistral's templates reject all other ids.
_MISTRAL_ID = re.compile(r"[A-Za-z0-9]{9}")


def template_tools(tools: Sequence[Tool]) -> tuple[dict[str, Any], ...]:
    """Return the tools as templates expect them: dicts as in OpenAI's API, with all keys."""
    return tuple({"type": "function", "function": _function(tool)} for tool in tools)


def with_tools_in_text(
    messages: Sequence[Message],
    tools: Sequence[Tool],
    syntax: CallSyntax,
    *,
    has_system: bool = True,
) -> tuple[Message, ...]:
    """Return the conversation with its tools as text, for a template that does not accept tools.

    A system message describes the functions and the syntax of calls. Earlier tool calls become text
    of the assistant. Their results become user messages; consecutive results share one.

    Args:
        has_system: If False, the template has no system messages, so the description becomes part
            of the first message.
    """
    shown: list[Message] = []
    follows_result = False
    for message in messages:
        if message.role != "tool":
            shown.append(_with_calls_in_text(message, syntax) if message.tool_calls else message)
        elif follows_result:
            results = f"{shown[-1].content}\n{_RESULT.format(message.content or '')}"
            shown[-1] = replace(shown[-1], content=results)
        else:
            shown.append(Message("user", _RESULT.format(message.content or "")))
        follows_result = message.role == "tool"
    if not tools:
        return tuple(shown)
    text = _instructions(tools, syntax)
    roles = ("system", "developer") if has_system else ("user", "system", "developer")
    if shown and shown[0].role in roles:
        content = f"{shown[0].content}\n\n{text}" if has_system else f"{text}\n\n{shown[0].content}"
        return (replace(shown[0], content=content), *shown[1:])
    return (Message("system" if has_system else "user", text), *shown)


def with_mistral_ids(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return the conversation with tool call ids as Mistral requires: nine letters and digits."""
    return tuple(
        replace(
            message,
            tool_calls=tuple(replace(call, id=_mistral_id(call.id)) for call in message.tool_calls),
            tool_call_id=message.tool_call_id and _mistral_id(message.tool_call_id),
        )
        for message in messages
    )


def _mistral_id(call_id: str) -> str:
    if _MISTRAL_ID.fullmatch(call_id):
        return call_id
    return hashlib.sha256(call_id.encode()).hexdigest()[:9]


def _function(tool: Tool) -> dict[str, Any]:
    return {
        "name": tool.name,
        "description": tool.description,
        "parameters": _parameters(tool.schema) or {"type": "object", "properties": {}},
    }


def _parameters(schema: str) -> dict[str, Any] | None:
    parameters = json.loads(schema) if schema else None
    return parameters if isinstance(parameters, dict) else None


def _with_calls_in_text(message: Message, syntax: CallSyntax) -> Message:
    calls = syntax.written((call.name, call.arguments_json or "{}") for call in message.tool_calls)
    content = f"{message.content}\n{calls}" if message.content else calls
    return replace(message, content=content, tool_calls=())


def _instructions(tools: Sequence[Tool], syntax: CallSyntax) -> str:
    listed = "\n".join(json.dumps(_function(tool), ensure_ascii=False) for tool in tools)
    example = syntax.written([("NAME", '{"PARAMETER": "VALUE"}')])
    return _INSTRUCTIONS.format(tools=listed, example=example)
