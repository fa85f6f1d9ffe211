import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.model import ToolFormat
from service.text.tool_calls.events import Arguments, CallEnd, CallStart, Content, Event
from service.text.tool_calls.gemma_arguments import parse_gemma_arguments
from service.text.tool_calls.syntax import SYNTAXES

NAMES = frozenset({"f", "get_weather"})
HERMES, LLAMA, MISTRAL = ToolFormat.HERMES, ToolFormat.LLAMA3_JSON, ToolFormat.MISTRAL
JSON, GEMMA, GEMMA4 = ToolFormat.JSON, ToolFormat.GEMMA, ToolFormat.GEMMA4

# Random outputs that resemble calls are made of these pieces.
PIECES = (
    *("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|tool_call>", "<tool_call|>"),
    *('{"name": "f", "arguments": ', '{"a": [1]}', "{", "}", "[", "]", ",", '"', "\\", " "),
    *("<start_function_call>call:f", "<end_function_call>", "f", "text", "\n", "<", "é", ";"),
)

Call = tuple[str, str]
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": "}{\\""}}\n</tool_call>'


def events_of(form: ToolFormat, pieces: list[str]) -> list[Event]:
    parser = SYNTAXES[form].parser(NAMES)
    return [event for piece in pieces for event in parser.push(piece)] + parser.flush()


def parsed(form: ToolFormat, pieces: list[str]) -> tuple[str, list[Call]]:
    """Return the content and the calls of an output."""
    content = ""
    calls: list[Call] = []
    for event in events_of(form, pieces):
        match event:
            case Content(text):
                content += text
            case CallStart(name):
                calls.append((name, ""))
            case Arguments(text):
                calls[-1] = (calls[-1][0], calls[-1][1] + text)
            case CallEnd():
                pass
    return content, calls


def cut(text: str, size: int) -> list[str]:
    return [text[i : i + size] for i in range(0, len(text), size)]


@pytest.mark.parametrize(
    ("form", "text", "content", "calls"),
    [
        (HERMES, "hi", "hi", []),
        (HERMES, " hi \n", " hi \n", []),
        (HERMES, CALL, "", [("f", '{"a": "}{\\""}')]),
        (HERMES, f"Wait.\n{CALL}\n{CALL}\nok ", "Wait.ok ", [("f", '{"a": "}{\\""}')] * 2),
        (HERMES, '<tool_call>{"name":"f","arguments":{}}', "", [("f", "{}")]),
        (HERMES, '<tool_call>{"arguments": {"x":1}, "name":"f"}', "", [("f", '{"x": 1}')]),
        (HERMES, '<tool_call>{"name":"f","arguments":"{\\"a\\":1}"}', "", [("f", '{"a":1}')]),
        (HERMES, '<tool_call>{"name":"f"}</tool_call>', "", [("f", "{}")]),
        (HERMES, f"x<tool_call> {CALL}", "x<tool_call>", [("f", '{"a": "}{\\""}')]),
        (HERMES, '<tool_call>{"name":"f","arguments":{"a":1', "", [("f", '{"a":1')]),
        (
            MISTRAL,
            "[TOOL_CALLS]h[ARGS]{}[TOOL_CALLS]f[ARGS]{}",
            "[TOOL_CALLS]h[ARGS]{}",
            [("f", "{}")],
        ),
        (LLAMA, '{"name": "f", "parameters": {"a": 1}}', "", [("f", '{"a": 1}')]),
        (
            LLAMA,
            '<|python_tag|>{"name": "f", "parameters": {}}; {"name":"f","parameters":{"b":2}}',
            "",
            [("f", "{}"), ("f", '{"b":2}')],
        ),
        (LLAMA, '{"name":"f","parameters":{}} and so', "and so", [("f", "{}")]),
        (LLAMA, '{"name":"f","parameters":{}};', "", [("f", "{}")]),
        (JSON, '[{"name":"f","arguments":{"z":[]}}]', "", [("f", '{"z":[]}')]),
        (
            JSON,
            '{"type":"function","function":{"name":"f","parameters":{"q":1}}}',
            "",
            [("f", '{"q": 1}')],
        ),
        (
            MISTRAL,
            '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}, {"name":"f","arguments":{}}]',
            "",
            [("f", '{"a": 1}'), ("f", "{}")],
        ),
        (
            MISTRAL,
            '[TOOL_CALLS]f[ARGS]{"a":[1]}[TOOL_CALLS]get_weather[CALL_ID]a1[ARGS]{}',
            "",
            [("f", '{"a":[1]}'), ("get_weather", "{}")],
        ),
        (
            MISTRAL,
            '[TOOL_CALLS][{"name":"f","arguments":{}}, {"x":1}] z',
            ', {"x":1}] z',
            [("f", "{}")],
        ),
        (
            GEMMA,
            "<start_function_call>call:f{a:<escape>Lon,}d<escape>,b:1,c:[0,{d:null}]}<end_function_call>",
            "",
            [("f", '{"a": "Lon,}d", "b": 1, "c": [0, {"d": null}]}')],
        ),
        (GEMMA4, '<|tool_call>call:f{a:<|"|>x<|"|>}<tool_call|>ok', "ok", [("f", '{"a": "x"}')]),
        (GEMMA4, '<|tool_call>call:f{"a":"x"}<tool_call|>', "", [("f", '{"a":"x"}')]),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_parser_separates_calls_and_content(
    form: ToolFormat, text: str, content: str, calls: list[Call], size: int
) -> None:
    assert parsed(form, cut(text, size)) == (content, calls)


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (HERMES, "<tool_call>no <tool"),
        (HERMES, '<tool_call>\n{"name":"other","arguments":{}}</tool_call> x'),
        (HERMES, '<tool_call>{"a":1}</tool_call>'),
        (HERMES, '<tool_call>{"name":"f","arg'),
        (HERMES, '<tool_call>{"name":"f","arguments":[1]}</tool_call>'),
        (HERMES, "a < b <tool_cal"),
        (HERMES, "<tool_call>" * 5),
        (LLAMA, 'hello {"name":"f","parameters":{}}'),
        (LLAMA, '{"a":1} hi'),
        (LLAMA, "<|python_tag|>print(1)"),
        (LLAMA, " <|pyth"),
        (LLAMA, "{"),
        (JSON, "[1,2]"),
        (JSON, '["{", {'),
        (MISTRAL, "[TOOL_CALLS] [1]"),
        (HERMES, '<tool_call>{"arguments": {"a": NaN}, "name": "f"}</tool_call>'),
        (HERMES, '<tool_call>{"arguments": {"a": 1e999}, "name": "f"}</tool_call>'),
        (MISTRAL, "[TOOL_CALLS]"),
        (MISTRAL, "x [TOOL_CALLS]zzz[ARGS]{} y"),
        (MISTRAL, "[TOOL_CALLS]no head{ y"),
        (MISTRAL, '[TOOL_CALLS],}{"n'),
        (GEMMA, "<start_function_call>call:f{a"),
        (GEMMA, "<start_function_call>call:f{a:}<end_function_call>"),
        (GEMMA4, "<|tool_call>call:other{}<tool_call|> y"),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_text_that_is_not_a_call_is_unchanged_content(
    form: ToolFormat, text: str, size: int
) -> None:
    assert parsed(form, cut(text, size)) == (text, [])


@given(
    form=st.sampled_from(ToolFormat),
    text=st.lists(st.sampled_from(PIECES), max_size=14).map("".join),
    seed=st.integers(0, 1000),
)
def test_result_does_not_depend_on_the_pieces(form: ToolFormat, text: str, seed: int) -> None:
    choose = random.Random(seed)
    pieces, rest = [], text
    while rest:
        size = choose.randrange(1, 6)
        pieces.append(rest[:size])
        rest = rest[size:]
    assert parsed(form, pieces) == parsed(form, [text])


def test_arguments_are_streamed() -> None:
    parser = SYNTAXES[HERMES].parser(NAMES)
    assert parser.push('<tool_call>{"name": "f", "arguments"') == []
    assert parser.push(': {"a": ') == [CallStart("f"), Arguments('{"a": ')]
    assert parser.push("12") == [Arguments("12")]
    assert parser.push("}}</tool") == [Arguments("}"), CallEnd()]
    assert parser.push("_call>") == parser.flush() == []


@pytest.mark.parametrize("form", ToolFormat)
def test_parser_reads_what_its_syntax_writes(form: ToolFormat) -> None:
    calls = [("f", '{"a": "x"}'), ("get_weather", "{}")]
    text = SYNTAXES[form].written(calls)
    assert parsed(form, cut(text, 4)) == ("", calls)


@pytest.mark.parametrize(
    "text", ["{a:1", "{a}", "{:1}", "{a:1 b:2}", "{a:<escape>x}", "[1]", "", "{a:" * 100, "{}x"]
)
def test_malformed_gemma_arguments_are_rejected(text: str) -> None:
    assert parse_gemma_arguments(text, "<escape>") is None


def test_hostile_output_is_parsed_in_linear_time() -> None:
    parser = SYNTAXES[HERMES].parser(NAMES)
    nested = '<tool_call>{"x":"'
    for _ in range(20_000):
        parser.push(nested)
    events = parser.flush()
    assert "".join(event.text for event in events if isinstance(event, Content)) == nested * 20_000
