"""The input of a custom tool within the arguments of a function."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_http.convert.custom_tools import InputText, arguments, input_schema
from gateway_http.protocol.responses_request import CustomGrammarFormat, CustomTextFormat

texts = st.text(alphabet=st.characters(exclude_categories=["Cs"]))


def extracted(pieces: list[str]) -> str:
    text = InputText()
    return "".join(map(text.push, pieces)) + text.finish()


@given(texts, st.lists(st.integers(0, 200)), st.booleans())
def test_input_is_extracted_from_any_pieces(text: str, cuts: list[int], is_ascii: bool) -> None:
    whole = json.dumps({"input": text}, ensure_ascii=is_ascii)
    ends = sorted({min(cut, len(whole)) for cut in cuts} | {0, len(whole)})
    pieces = [whole[a:b] for a, b in itertools.pairwise(ends)]
    assert extracted(pieces) == text
    assert extracted([arguments(text)]) == text


@given(texts, st.integers(0, 200))
def test_cut_input_is_a_beginning(text: str, length: int) -> None:
    whole = json.dumps({"input": text})
    head = len('{"input": "')
    assert text.startswith(extracted([whole[: max(length, head)]]))


@pytest.mark.parametrize("other", ["plain text", '{"inputs": "a"}', "{}", ""])
def test_other_arguments_are_the_input(other: str) -> None:
    assert extracted([other[:3], other[3:]]) == other


def test_half_of_a_surrogate_pair_does_not_stop_the_text() -> None:
    assert extracted(['{"input": "a\\ud83d', 'b c"}']) == "a\ufffdb c"
    assert extracted(['{"input": "a\\ud83d', '\\u0041 c"}']) == "a\ufffdA c"
    assert extracted(['{"input": "a\\ud83d', '\\ud83d\\ude00 c"}']) == "a\ufffd\U0001f600 c"
    assert extracted(['{"input": "a\\ude00 c"}']) == "a\ufffd c"


def test_format_is_a_part_of_the_schema() -> None:
    for form in (None, CustomTextFormat()):
        assert json.loads(input_schema(form))["properties"]["input"] == {"type": "string"}
    schema = json.loads(input_schema(CustomGrammarFormat("regex", "a|b")))
    assert schema["properties"]["input"]["pattern"] == "^(?:a|b)$"
    assert schema["required"] == ["input"]
