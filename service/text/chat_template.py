"""Renders a conversation through the model's chat template and encodes it."""

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from service.domain.chat import Message, PromptOptions, ToolCall
from service.domain.model import Tokenizer
from service.errors import TemplateRejected

_SYSTEM_ROLES = ("system", "developer")
# This character marks the end of a message to be continued, so that the end can be found in the
# rendered text.
_END_OF_PROMPT = "\U000f0002"


def render_prompt(
    tokenizer: Tokenizer, messages: Sequence[Message], options: PromptOptions
) -> list[int]:
    """Return the token ids of a conversation's prompt; see `render_text`."""
    return encode_prompt(tokenizer, render_text(tokenizer, messages, options), options)


def encode_prompt(tokenizer: Tokenizer, text: str, options: PromptOptions) -> list[int]:
    """Return the token ids of a prompt's text: the last ones, if the options ask for truncation."""
    try:
        text.encode()
    except UnicodeEncodeError as error:  # from an escape in JSON within a message
        raise TemplateRejected("they contain an unpaired surrogate") from error
    # Templates write the beginning-of-sequence token themselves; encoding must not add a second
    # one.
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    return token_ids[-(options.truncate_prompt_tokens or 0) :]


def render_text(tokenizer: Tokenizer, messages: Sequence[Message], options: PromptOptions) -> str:
    """Return the prompt's text, which is to be encoded without special tokens.

    Many templates accept a system message only at the beginning. If the template rejects the
    conversation, it is rendered again with all its system messages joined into one at the
    beginning.

    Raises:
        TemplateRejected: The template rejects the conversation. The error message is that of the
            first try.
        UnsupportedField: The options contain a template variable that requests may not set.
    """
    chat = template_messages(messages)
    if options.continue_final_message:
        chat[-1]["content"] += _END_OF_PROMPT
    try:
        text = tokenizer.render_chat(chat, options)
    except TemplateRejected as refusal:
        text = _render_with_one_system(tokenizer, chat, options, refusal)
    if not options.continue_final_message:
        return text
    text, mark, _ = text.rpartition(_END_OF_PROMPT)
    if not mark:
        raise TemplateRejected("it does not render the last message, which is to be continued")
    return text


def template_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return the messages as templates expect them: dicts as in OpenAI's API, with two differences.

    - If the arguments of a tool call are a JSON object, they become a dict. Most templates iterate
      over them, or write them as JSON themselves, which would quote a string twice. Other arguments
      remain text.
    - A message without content gets an empty one. Templates that append the content to a string
      fail if the key is missing, and write null as "None".
    """
    return [_template_message(message) for message in messages]


def with_known_roles(chat: list[dict[str, Any]], template: str) -> list[dict[str, Any]]:
    """Rename the role `developer` to `system`, if the template does not mention it.

    Without this, some templates would write a role that the model was not trained on. Others would
    drop the message silently.
    """
    if re.search(r"""["']developer["']""", template):
        return chat
    return [
        message | {"role": "system"} if message["role"] == "developer" else message
        for message in chat
    ]


def _template_message(message: Message) -> dict[str, Any]:
    fields: dict[str, Any] = {"role": message.role, "content": message.content or ""}
    optional = {
        "name": message.name,
        "tool_call_id": message.tool_call_id,
        "reasoning_content": message.reasoning_content,
        "tool_calls": [_template_tool_call(call) for call in message.tool_calls] or None,
    }
    return fields | {name: value for name, value in optional.items() if value is not None}


def _template_tool_call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": _template_arguments(call.arguments_json)}
    return {"id": call.id, "type": "function", "function": function}


def _template_arguments(arguments_json: str) -> dict[str, Any] | str:
    if not arguments_json.strip():
        return {}  # some clients send this for a call without arguments
    # The text was written by a model, so it can be anything, for example nested too deeply.
    with suppress(ValueError, RecursionError):
        arguments = json.loads(arguments_json)
        if isinstance(arguments, dict):
            return arguments
    return arguments_json


def _render_with_one_system(
    tokenizer: Tokenizer,
    chat: list[dict[str, Any]],
    options: PromptOptions,
    refusal: TemplateRejected,
) -> str:
    joined = _with_one_system(chat)
    if joined != chat:
        with suppress(TemplateRejected):
            return tokenizer.render_chat(joined, options)
    raise refusal


def _with_one_system(chat: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages with all system messages joined by blank lines into a first one."""
    systems = [message for message in chat if message["role"] in _SYSTEM_ROLES]
    others = [message for message in chat if message["role"] not in _SYSTEM_ROLES]
    if not systems:
        return chat
    content = "\n\n".join(message["content"] for message in systems)
    return [systems[0] | {"content": content}, *others]
