import pytest

from service.config import ServiceSettings
from service.domain.model import ChatFormats, ReasoningFormat, ToolFormat
from service.text.tool_calls.syntax import chat_formats


@pytest.mark.parametrize(
    ("template", "tools", "is_shown"),
    [
        (None, ToolFormat.HERMES, False),
        ("{{ messages }}", ToolFormat.HERMES, False),
        ("{% broken", ToolFormat.HERMES, False),
        ("tools <tool_call>", ToolFormat.HERMES, False),  # "tools" is not a variable
        ("{% if tools %}<tool_call>{% endif %}", ToolFormat.HERMES, True),
        ("{% if tools %}<|python_tag|>{% endif %}", ToolFormat.LLAMA3_JSON, True),
        (
            """{% if tools is not defined %}{% set tools = 0 %}{% endif %}{{ '"parameters": ' }}""",
            ToolFormat.LLAMA3_JSON,
            True,
        ),
        ("{{ tools }}[TOOL_CALLS]", ToolFormat.MISTRAL, True),
        ("{{ tools }}[TOOL_CALLS][ARGS]", ToolFormat.MISTRAL_ARGS, True),
        ("{{ tools }}<start_function_call>", ToolFormat.GEMMA, True),
        ("{{ tools }}<|tool_call>", ToolFormat.GEMMA4, True),
        ("{{ tools }}", ToolFormat.JSON, True),
    ],
)
def test_tool_format_is_detected_by_the_template(
    template: str | None, tools: ToolFormat, is_shown: bool
) -> None:
    found = chat_formats(template)
    assert (found.tools, found.has_tool_template) == (tools, is_shown)


@pytest.mark.parametrize(
    ("template", "reasoning"),
    [
        ("{{ messages }}", ReasoningFormat.NONE),
        ("{% if enable_thinking %}{{ '</think>' }}{% endif %}", ReasoningFormat.THINK),
        ("[THINK][/THINK]", ReasoningFormat.MISTRAL),
    ],
)
def test_reasoning_format_is_detected_by_the_template(
    template: str, reasoning: ReasoningFormat
) -> None:
    assert chat_formats(template).reasoning is reasoning


def test_tool_format_is_detected_by_the_tool_template() -> None:
    found = chat_formats("</think>", tool_template="{{ tools }}<|python_tag|>")
    assert found == ChatFormats(ToolFormat.LLAMA3_JSON, True, ReasoningFormat.THINK)
    assert chat_formats("", tool_template="</think>").reasoning is ReasoningFormat.THINK


def test_configured_formats_override_detection() -> None:
    found = chat_formats("{{ tools }}</think>", ToolFormat.GEMMA, ReasoningFormat.NONE)
    assert found == ChatFormats(ToolFormat.GEMMA, True, ReasoningFormat.NONE)


def test_every_format_is_an_option_value() -> None:
    for form in ToolFormat:
        assert ServiceSettings.load([f"--tool-format={form.value}"]).tool_format == form.value
    for thoughts in ReasoningFormat:
        chosen = ServiceSettings.load([f"--reasoning-format={thoughts.value}"])
        assert chosen.reasoning_format == thoughts.value
