"""A conversation to the token ids of a prompt, through the model's chat template."""

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from service.domain.chat import Message, PromptOptions, ToolCall
from service.domain.model import Tokenizer
from service.errors import TemplateRejected

_SYSTEM_ROLES = ("system", "developer")
# Stands behind a message that is to be continued, to find the place again in the rendered text.
_END_OF_PROMPT = "\U000f0002"


def render_prompt(
    tokenizer: Tokenizer, messages: Sequence[Message], options: PromptOptions
) -> list[int]:
    """The prompt's token ids; see `render_text`."""
    return encode_prompt(tokenizer, render_text(tokenizer, messages, options), options)


def encode_prompt(tokenizer: Tokenizer, text: str, options: PromptOptions) -> list[int]:
    """The token ids of a prompt's text, the last of them if there are too many."""
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON within a message can write one
        raise TemplateRejected("they hold half of a surrogate pair") from error
    # Templates write the beginning-of-sequence token themselves; encoding must not add a second
    # one.
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    return token_ids[-(options.truncate_prompt_tokens or 0) :]


def render_text(tokenizer: Tokenizer, messages: Sequence[Message], options: PromptOptions) -> str:
    """The prompt's text, to be encoded without special tokens.

    Many templates take a system message in the first place only. Where the template refuses the
    conversation as it stands, it is tried once more with all its system messages joined into a
    first one.

    Raises:
        TemplateRejected: the template refuses the conversation; the text is about the first try.
        UnsupportedField: the options hold a template variable that a request may not set.
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
        raise TemplateRejected("it leaves the last message out, which was to be continued")
    return text


def template_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages as chat templates read them: dicts as in OpenAI's API, with two differences.

    - A call's arguments are a dict where they are a JSON object, as most templates iterate over
      them or write them as JSON themselves, which would quote a string a second time. Others stay
      text.
    - A message without content has the empty one: the absence of the key breaks templates that
      append it to a string, a null is written out as "None", and "" is right for both.
    """
    return [_template_message(message) for message in messages]


def with_known_roles(chat: list[dict[str, Any]], template: str) -> list[dict[str, Any]]:
    """The messages, the developer role called system where the template's source has no such role.

    Templates that write any role out as they find it would otherwise show the model a role that it
    was never trained on, and others would drop the message without a word.
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
        return {}  # how some clients write a call without arguments
    # A model wrote this text once, so anything may stand here, nesting without end included.
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
    """The same messages, the contents of the system ones joined by blank lines in a first one."""
    systems = [message for message in chat if message["role"] in _SYSTEM_ROLES]
    others = [message for message in chat if message["role"] not in _SYSTEM_ROLES]
    if not systems:
        return chat
    content = "\n\n".join(message["content"] for message in systems)
    return [systems[0] | {"content": content}, *others]
