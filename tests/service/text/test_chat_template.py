from typing import Any

import pytest

from service.domain.chat import Message, PromptOptions, ToolCall
from service.errors import TemplateRejected
from service.text.chat_template import render_prompt, template_messages, with_known_roles
from tests.support.library_tokenizers import LibraryTokenizer, byte_level

SYSTEM, USER, OTHER = (
    Message("system", "Be kind."),
    Message("user", "Hi"),
    Message("system", "Rhyme."),
)


class TemplatingTokenizer(LibraryTokenizer):
    """Renders role and content on one line each. Rejects messages as `refuses` specifies."""

    def __init__(self, *refuses: str) -> None:
        super().__init__(byte_level())
        self._refuses = refuses

    def render_chat(self, messages: list[dict[str, Any]], options: PromptOptions) -> str:
        roles = [message["role"] for message in messages]
        if "system" in roles[1:] and "late system" in self._refuses:
            raise TemplateRejected("System message must be at the beginning")
        if "system" in roles and "system" in self._refuses:
            raise TemplateRejected("System role not supported")
        return "".join(f"{message['role']}: {message['content']}\n" for message in messages)


def rendered(tokenizer: TemplatingTokenizer, *messages: Message) -> str:
    ids = render_prompt(tokenizer, messages, PromptOptions())
    return tokenizer.decode(ids, skip_special_tokens=False)


def test_system_messages_keep_their_order_if_the_template_accepts_them() -> None:
    text = rendered(TemplatingTokenizer(), SYSTEM, USER, OTHER)
    assert text == "system: Be kind.\nuser: Hi\nsystem: Rhyme.\n"


def test_system_messages_are_joined_if_the_template_accepts_only_a_first_one() -> None:
    text = rendered(TemplatingTokenizer("late system"), SYSTEM, USER, OTHER)
    assert text == "system: Be kind.\n\nRhyme.\nuser: Hi\n"
    developer = Message("developer", "Be brief.")
    text = rendered(TemplatingTokenizer("late system"), developer, USER, OTHER)
    assert text == "developer: Be brief.\n\nRhyme.\nuser: Hi\n"


def test_continued_message_is_the_end_of_the_prompt() -> None:
    options = PromptOptions(add_generation_prompt=False, continue_final_message=True)
    tokenizer = TemplatingTokenizer()
    said = Message("assistant", "Once upon a ")
    ids = render_prompt(tokenizer, (USER, said), options)
    text = tokenizer.decode(ids, skip_special_tokens=False)
    assert text == "user: Hi\nassistant: Once upon a "


def test_template_without_the_last_message_cannot_continue_it() -> None:
    class Dropping(TemplatingTokenizer):
        def render_chat(self, messages: list[dict[str, Any]], options: PromptOptions) -> str:
            return super().render_chat(messages[:-1], options)

    options = PromptOptions(add_generation_prompt=False, continue_final_message=True)
    with pytest.raises(TemplateRejected, match="does not render the last message"):
        render_prompt(Dropping(), (USER, Message("assistant", "Once")), options)


def test_truncated_prompt_keeps_its_end() -> None:
    tokenizer = TemplatingTokenizer()
    whole = render_prompt(tokenizer, (SYSTEM, USER), PromptOptions())
    for count in (1, 3, len(whole), len(whole) + 1):
        cut = render_prompt(tokenizer, (SYSTEM, USER), PromptOptions(truncate_prompt_tokens=count))
        assert cut == whole[-count:]


def test_rejection_reports_the_error_of_the_original_messages() -> None:
    tokenizer = TemplatingTokenizer("system", "late system")
    with pytest.raises(TemplateRejected, match="System message must be at the beginning"):
        rendered(tokenizer, USER, OTHER)
    with pytest.raises(TemplateRejected, match="System role not supported"):
        rendered(tokenizer, SYSTEM, USER)


def test_absent_fields_are_omitted_and_absent_content_is_empty() -> None:
    assert template_messages([Message("assistant", None)]) == [{"role": "assistant", "content": ""}]
    message = Message("tool", "4", name="add", tool_call_id="call_1", reasoning_content="2 + 2")
    assert template_messages([message]) == [
        {
            "role": "tool",
            "content": "4",
            "name": "add",
            "tool_call_id": "call_1",
            "reasoning_content": "2 + 2",
        }
    ]


@pytest.mark.parametrize(
    ("arguments_json", "arguments"),
    [
        ('{"a": 9007199254740993, "b": [null]}', {"a": 9007199254740993, "b": [None]}),
        ("", {}),
        ("not json", "not json"),
        ("[1]", "[1]"),
        ('"{}"', '"{}"'),
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_arguments_become_a_dict_if_they_are_an_object(arguments_json: str, arguments: Any) -> None:
    message = Message("assistant", None, tool_calls=(ToolCall("call_1", "add", arguments_json),))
    (call,) = template_messages([message])[0]["tool_calls"]
    assert call == {
        "id": "call_1",
        "type": "function",
        "function": {"name": "add", "arguments": arguments},
    }


def test_developer_role_becomes_system_unless_the_template_mentions_it() -> None:
    chat = template_messages([Message("developer", "Be kind."), USER])
    assert with_known_roles(chat, "{{ message.role == 'developer' }}") == chat
    for template in ("{{ message.role }}", "You are a developer. {{ message.role }}"):
        assert with_known_roles(chat, template) == template_messages([SYSTEM, USER])


def test_unpaired_surrogate_in_a_message_is_rejected() -> None:
    with pytest.raises(TemplateRejected, match="surrogate"):
        render_prompt(TemplatingTokenizer(), (Message("user", "\ud800"),), PromptOptions())
