import pytest

from service.domain.model import ReasoningFormat
from service.text.reasoning import MARKERS, ReasoningText, Thinking, thinking_after

THINK = MARKERS[ReasoningFormat.THINK]


@pytest.mark.parametrize(
    ("prompt", "thinking"),
    [
        ("<assistant>", Thinking.POSSIBLE),
        ("<assistant><think>\n", Thinking.OPEN),
        ("<assistant><think>\n\n</think>\n\n", Thinking.CLOSED),
        ("<user>\U000f0000<think>\U000f0001", Thinking.POSSIBLE),  # content is only text
    ],
)
def test_end_of_the_prompt_determines_the_reasoning(prompt: str, thinking: Thinking) -> None:
    assert thinking_after(prompt, THINK) is thinking


@pytest.mark.parametrize(
    ("text", "is_open", "reasoning", "output"),
    [
        ("<think>\nHm. 2 < 3\n</think>\n\nFour.", False, "Hm. 2 < 3", "Four."),
        ("\nHm.\n</think>\n\nFour.\n", True, "Hm.", "Four.\n"),
        ("<think>Hm.</think>Four.", True, "<think>Hm.", "Four."),
        ("Four.", False, "", "Four."),
        (" Four </think>", False, "", " Four </think>"),
        ("<think></think>Four.", False, "", "Four."),
        ("<think>Hm", False, "Hm", ""),
        ("Hm. </thi", True, "Hm. </thi", ""),
        ("<thi", False, "", "<thi"),
        ("", True, "", ""),
        ("<think>a</think>b<think>c</think>", False, "a", "b<think>c</think>"),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_text_is_split_into_reasoning_and_output(
    text: str, is_open: bool, reasoning: str, output: str, size: int
) -> None:
    splitter = ReasoningText(THINK, is_open=is_open)
    parts = [splitter.push(text[i : i + size], 1) for i in range(0, len(text), size)]
    parts.append(splitter.flush())
    assert "".join(each for each, _ in parts) == reasoning
    assert "".join(each for _, each in parts) == output


def test_reasoning_tokens_include_the_markers() -> None:
    reading = ReasoningText(THINK, is_open=False)
    for token in ("<", "think>", "Hm", ".", "</think>", "\n\n", "Four", "."):
        reading.push(token, 1)
    assert reading.num_tokens == 5
    assert reading.is_over
    without = ReasoningText(THINK, is_open=False)
    without.push("<", 1)
    without.push("b>", 1)
    assert without.num_tokens == 0
