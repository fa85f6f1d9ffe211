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
        ("<user>\U000f0000<think>\U000f0001", Thinking.POSSIBLE),  # what a message says is text
    ],
)
def test_what_a_prompt_leaves_to_the_model(prompt: str, thinking: Thinking) -> None:
    assert thinking_after(prompt, THINK) is thinking


@pytest.mark.parametrize(
    ("text", "is_open", "thoughts", "answer"),
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
def test_thoughts_and_answer(
    text: str, is_open: bool, thoughts: str, answer: str, size: int
) -> None:
    reading = ReasoningText(THINK, is_open=is_open)
    told = [reading.push(text[i : i + size], 1) for i in range(0, len(text), size)]
    told.append(reading.flush())
    assert "".join(each for each, _ in told) == thoughts
    assert "".join(each for _, each in told) == answer


def test_every_token_of_the_thoughts_counts_their_markers_too() -> None:
    reading = ReasoningText(THINK, is_open=False)
    for token in ("<", "think>", "Hm", ".", "</think>", "\n\n", "Four", "."):
        reading.push(token, 1)
    assert reading.num_tokens == 5
    assert reading.is_answer
    without = ReasoningText(THINK, is_open=False)
    without.push("<", 1)
    without.push("b>", 1)
    assert without.num_tokens == 0
