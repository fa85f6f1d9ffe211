"""Requests become prompts, grammars and parsers, with real tokenizers and templates."""

import json
import random
from typing import Any

import pytest
import tokenizers

from service.domain.backend import TextDelta
from service.domain.chat import (
    ChatRequest,
    Message,
    PromptOptions,
    ResponseFormat,
    ResponseFormatKind,
    Tool,
    ToolCall,
    ToolMode,
)
from service.domain.engine import FinishReason, TokenOutput
from service.domain.model import LocalModel, ToolFormat
from service.domain.sampling import SamplingParams
from service.errors import UnsupportedField
from service.text.conversation import compile_grammar, prepare
from service.text.grammars import CompiledGrammars, load_token_trie
from service.text.hf_tokenizer import HfTokenizer
from service.text.output_parser import OutputParser
from service.text.output_text import OutputText
from service.text.tool_calls.syntax import chat_formats
from tests.fakes.engine import FakeEngine
from tests.fakes.grammars import allowed, choose_token
from tests.support.grpc_server import CARD
from tests.support.library_tokenizers import byte_fallback, byte_level

# The parts of these model families' templates that the tests need.
TEMPLATES = {
    ToolFormat.HERMES: "{% if tools %}{{ tools | tojson }}<tool_call>{% endif %}",
    ToolFormat.LLAMA3_JSON: "{% if tools %}{{ tools | tojson }}<|python_tag|>{% endif %}",
    ToolFormat.MISTRAL: "{% if tools %}{{ tools | tojson }}[TOOL_CALLS]{% endif %}",
    ToolFormat.MISTRAL_ARGS: "{% if tools %}{{ tools | tojson }}[TOOL_CALLS][ARGS]{% endif %}",
    ToolFormat.GEMMA: "{% if tools %}{{ tools | tojson }}<start_function_call>{% endif %}",
    ToolFormat.GEMMA4: "{% if tools %}{{ tools | tojson }}<|tool_call>{% endif %}",
    ToolFormat.JSON: "{% if tools %}{{ tools | tojson }}{% endif %}",
}
MARKERS = ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>"]
MARKERS += ["<start_function_call>", "<end_function_call>", "<|tool_call>", "<tool_call|>"]
MARKERS += ["<think>", "</think>", "<|end|>"]
MESSAGES = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ m.tool_call_id }}"
    "{% for call in m.tool_calls %}{{ call }}{% endfor %}{% endfor %}"
)
THINKING = "{% if enable_thinking is defined %}<think></think>{% else %}<think>{% endif %}"

CITY = {"enum": ["Rome", "Köln"]}
WEATHER = {"type": "object", "properties": {"city": CITY}, "required": ["city"]}
TOOLS = (
    Tool("get_weather", "About it", json.dumps(WEATHER)),
    Tool("now", "", "", is_strict=True),
)


def model(
    template: str,
    *,
    is_special: bool = True,
    kind: Any = byte_level,
    tool_template: str | None = None,
) -> LocalModel:
    """Return a model with a template of this kind, whose tokenizer has all the markers."""
    backend: tokenizers.Tokenizer = kind()
    added = [tokenizers.AddedToken(m, special=is_special, normalized=False) for m in MARKERS[:-1]]
    backend.add_tokens(added)
    backend.add_special_tokens(["<|end|>"])
    tokenizer = HfTokenizer(backend, template, {}, tool_template)
    end = backend.token_to_id("<|end|>")
    assert end is not None
    trie = load_token_trie(tokenizer.to_json(), tokenizer.vocab_size, [end])
    return LocalModel(
        CARD,
        tokenizer,
        FakeEngine(),
        SamplingParams(),
        frozenset({end}),
        tokenizer.vocab_size,
        chat_formats(template, tool_template=tool_template),
        CompiledGrammars(trie, tokenizer.added_token_ids),
    )


def chat(**fields: Any) -> ChatRequest:
    given: dict[str, Any] = {"messages": (Message("user", "Hi"),), **fields}
    return ChatRequest("m", sampling=SamplingParams(), prompt=PromptOptions(), **given)


def random_deltas(request: ChatRequest, served: LocalModel, seed: int) -> list[TextDelta]:
    """Return the deltas of a random output that follows the request's grammar."""
    conversation = prepare(request, served)
    assert conversation.grammar is not None
    matcher = compile_grammar(conversation.grammar, served).matcher()
    output_format = conversation.output_format
    text = OutputText(served.tokenizer, request.sampling, output_format.shown_tokens)
    parser = OutputParser(output_format, text)
    choose = random.Random(seed)
    deltas: list[TextDelta] = []
    for _ in range(3000):
        choices = allowed(matcher)
        ends = served.eos_token_ids.intersection(choices)
        token_id = min(ends) if ends and choose.random() < 0.5 else choose_token(choose, choices)
        matcher.advance(token_id)
        reason = FinishReason.STOP if token_id in served.eos_token_ids else None
        deltas += parser.push(TokenOutput((token_id,), reason))
        if deltas[-1].finish_reason is not None:
            return deltas
    return deltas


def test_tool_template_is_used_only_for_requests_with_tools() -> None:
    served = model("plain " + MESSAGES, tool_template=TEMPLATES[ToolFormat.MISTRAL] + MESSAGES)
    assert served.formats.tools is ToolFormat.MISTRAL
    texts = [
        served.tokenizer.decode(
            prepare(request, served).prompt_token_ids, skip_special_tokens=False
        )
        for request in (chat(), chat(tools=TOOLS))
    ]
    assert texts[0] == "plain <user>Hi"
    assert "get_weather" in texts[1]
    assert texts[1].endswith("[TOOL_CALLS]<user>Hi")


@pytest.mark.parametrize("is_special", [True, False])
@pytest.mark.parametrize("form", ToolFormat)
def test_forced_calls_are_parsed_from_control_tokens_and_from_text(
    form: ToolFormat, is_special: bool
) -> None:
    served = model(TEMPLATES[form] + MESSAGES, is_special=is_special)
    assert served.formats.tools is form
    request = chat(tools=TOOLS, tool_mode=ToolMode.REQUIRED, has_parallel_calls=False)
    for seed in range(3):
        deltas = random_deltas(request, served, seed)
        assert deltas[-1].finish_reason is FinishReason.TOOL_CALLS
        assert "".join(delta.text for delta in deltas) == ""
        pieces = [piece for delta in deltas for piece in delta.tool_calls]
        arguments = json.loads("".join(piece.arguments for piece in pieces))
        if pieces[0].name == "now":
            assert arguments == {}
        else:
            assert arguments in ({"city": "Rome"}, {"city": "Köln"})


@pytest.mark.parametrize("kind", [byte_level, byte_fallback])
def test_response_format_works_with_both_kinds_of_tokenizer(kind: Any) -> None:
    served = model(MESSAGES, kind=kind)
    wanted = ResponseFormat(ResponseFormatKind.CHOICE, choices=("Hello", "日本 é"))
    for seed in range(5):
        deltas = random_deltas(chat(response_format=wanted), served, seed)
        assert "".join(delta.text for delta in deltas) in wanted.choices


@pytest.mark.parametrize("is_special", [True, False])
def test_response_format_follows_reasoning_that_the_prompt_opens(is_special: bool) -> None:
    served = model(MESSAGES + THINKING, is_special=is_special)
    wanted = ResponseFormat(ResponseFormatKind.CHOICE, choices=("yes",))
    conversation = prepare(chat(response_format=wanted), served)
    assert conversation.output_format.is_reasoning_open
    assert conversation.grammar is not None
    matcher = compile_grammar(conversation.grammar, served).matcher()
    thoughts = served.tokenizer.encode("Hello</think>", add_special_tokens=False)
    assert (served.tokenizer.special_token_id("</think>") == thoughts[-1]) == is_special
    for token_id in [*thoughts, *served.tokenizer.encode("yes", add_special_tokens=False)]:
        assert token_id in allowed(matcher)
        matcher.advance(token_id)
    assert served.eos_token_ids <= set(allowed(matcher))


def test_closed_reasoning_in_the_prompt_disables_reasoning() -> None:
    served = model(MESSAGES + THINKING)
    closed = PromptOptions(template_kwargs={"enable_thinking": False})
    request = ChatRequest("m", (Message("user", "Hi"),), SamplingParams(), closed)
    assert prepare(request, served).output_format.reasoning is None


def test_template_gets_tools_in_the_openai_form() -> None:
    served = model(TEMPLATES[ToolFormat.HERMES] + MESSAGES)
    prompt = prepare(chat(tools=TOOLS), served).prompt_token_ids
    text = served.tokenizer.decode(prompt, skip_special_tokens=False)
    shown = json.loads(text.partition("<tool_call>")[0])
    assert shown[0] == {
        "type": "function",
        "function": {"name": "get_weather", "description": "About it", "parameters": WEATHER},
    }
    assert shown[1]["function"]["parameters"] == {"type": "object", "properties": {}}


def test_tool_description_cannot_write_control_tokens() -> None:
    served = model(TEMPLATES[ToolFormat.HERMES] + MESSAGES)
    tools = (Tool("f", "Says <|end|> a lot", ""),)
    prompt = prepare(chat(tools=tools), served).prompt_token_ids
    assert not served.eos_token_ids.intersection(prompt)


def test_mistral_template_gets_short_call_ids() -> None:
    served = model(TEMPLATES[ToolFormat.MISTRAL] + MESSAGES)
    history = (
        Message("user", "Hi"),
        Message("assistant", None, tool_calls=(ToolCall("call_0123456789abcdef", "now", "{}"),)),
        Message("tool", "12:00", tool_call_id="call_0123456789abcdef"),
        Message("assistant", None, tool_calls=(ToolCall("abcDEF123", "now", "{}"),)),
        Message("tool", "12:01", tool_call_id="abcDEF123"),
    )
    prompt = prepare(chat(messages=history, tools=TOOLS), served).prompt_token_ids
    text = served.tokenizer.decode(prompt, skip_special_tokens=False)
    assert "call_0123456789abcdef" not in text
    assert text.count("abcDEF123") == 2


def test_template_without_system_role_gets_tools_in_the_user_message() -> None:
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    served = model(refusing + MESSAGES)
    prompt = prepare(chat(tools=TOOLS), served).prompt_token_ids
    text = served.tokenizer.decode(prompt, skip_special_tokens=False)
    assert text.startswith("<user>You can call functions.")
    assert text.endswith("\n\nHi")


def test_ambiguous_response_format_and_tool_calls_are_rejected() -> None:
    served = model(TEMPLATES[ToolFormat.LLAMA3_JSON] + MESSAGES)
    wanted = ResponseFormat(ResponseFormatKind.JSON_OBJECT)
    conversation = prepare(chat(tools=TOOLS, response_format=wanted), served)
    assert conversation.grammar is not None
    with pytest.raises(UnsupportedField):
        compile_grammar(conversation.grammar, served)
