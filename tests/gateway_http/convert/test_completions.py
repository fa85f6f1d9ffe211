"""Conversion of text completions between OpenAI's JSON and the proto."""

import json
from typing import Any

import pytest
from google.protobuf import json_format
from msgspec import to_builtins

from chatrpc.v1 import chat_pb2, completion_pb2
from gateway_http.convert import completions
from gateway_http.protocol.completion import UNSUPPORTED, CompletionRequest
from gateway_http.protocol.decode import decoder
from gateway_http.protocol.error import InvalidRequest

decode = decoder(CompletionRequest)


def request(**fields: Any) -> CompletionRequest:
    return decode(json.dumps({"model": "m", "prompt": "Hi"} | fields).encode())


def params(**fields: Any) -> completion_pb2.CompletionParams:
    return completions.params(request(**fields))


def rejection(**fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        params(**fields)
    return caught.value


def test_smallest_request_sets_nothing_else() -> None:
    """The service sets defaults for absent fields, such as the limit of 16 tokens."""
    assert params() == completion_pb2.CompletionParams(
        prompts=[completion_pb2.CompletionPrompt(text="Hi")],
        sampling=chat_pb2.SamplingParams(),
    )


@pytest.mark.parametrize(
    ("prompt", "wire"),
    [
        ("", [{"text": ""}]),
        (["a", "b"], [{"text": "a"}, {"text": "b"}]),
        ([1, 2], [{"tokenIds": {"ids": [1, 2]}}]),
        ([[1], [2, 3]], [{"tokenIds": {"ids": [1]}}, {"tokenIds": {"ids": [2, 3]}}]),
    ],
)
def test_every_form_of_a_prompt(prompt: Any, wire: list[Any]) -> None:
    expected = json_format.ParseDict({"prompts": wire}, completion_pb2.CompletionParams())
    assert list(params(prompt=prompt).prompts) == list(expected.prompts)


@pytest.mark.parametrize("prompt", [["a", 1], [1, [2]], ["a", ["b"]], [], None, 1, [None], [-1]])
def test_anything_else_is_no_prompt(prompt: Any) -> None:
    param = rejection(prompt=prompt).body.error.param
    assert param
    assert param.startswith("prompt")


@pytest.mark.parametrize(
    ("fields", "wire"),
    [
        ({"max_tokens": 0, "echo": True}, {"sampling": {"maxCompletionTokens": 0}, "echo": True}),
        ({"logprobs": 0}, {"logprobs": 0}),
        ({"prompt_logprobs": 3}, {"promptLogprobs": 3}),
        ({"suffix": "x"}, {"suffix": "x"}),
        ({"best_of": 1}, {}),
        ({"n": 2, "best_of": 2}, {"sampling": {"n": 2}}),
        ({"temperature": 0, "top_k": -1}, {"sampling": {"temperature": 0, "topK": 0}}),
        ({"response_format": {"type": "json_object"}}, {"responseFormat": {"jsonObject": {}}}),
        ({"add_special_tokens": False}, {"addSpecialTokens": False}),
        (
            {"return_token_ids": True, "truncate_prompt_tokens": 5, "user": "u"},
            {"returnTokenIds": True, "truncatePromptTokens": 5, "user": "u"},
        ),
        ({"priority": -1, "cache_salt": "s"}, {"priority": -1, "cacheSalt": "s"}),
    ],
)
def test_field_has_its_place(fields: dict[str, Any], wire: dict[str, Any]) -> None:
    expected = params()
    expected.MergeFrom(json_format.ParseDict(wire, completion_pb2.CompletionParams()))
    assert params(**fields) == expected


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_parameter_is_rejected_by_name(name: str) -> None:
    error = rejection(**{name: "x"}).body.error
    assert (error.param, error.code) == (name, "unsupported_parameter")


@pytest.mark.parametrize("fields", [{"best_of": 2}, {"n": 2, "best_of": 3}])
def test_best_of_that_differs_from_n_is_rejected(fields: dict[str, int]) -> None:
    assert rejection(**fields).body.error.param == "best_of"


def token(text: bytes, value: float, *top: chat_pb2.TokenLogprob) -> chat_pb2.TokenLogprob:
    return chat_pb2.TokenLogprob(
        token=text.decode(errors="replace"),
        token_bytes=text,
        logprob=value,
        token_id=text[0],
        top=top,
    )


def prompt_token(text: bytes, value: float | None, *top: Any) -> completion_pb2.PromptToken:
    return completion_pb2.PromptToken(
        token=text.decode(), token_bytes=text, logprob=value, token_id=text[0], top=top
    )


def test_echo_with_logprobs_has_openais_older_form() -> None:
    choice = completion_pb2.CompletionChoice(
        text="abc",
        finish_reason=chat_pb2.FINISH_REASON_LENGTH,
        prompt_tokens=[prompt_token(b"a", None), prompt_token(b"b", -2.5, token(b"x", -0.5))],
        logprobs=[token(b"c", float("-inf"), token(b"c", float("-inf")))],
        text_offsets=[0, 1, 2],
    )
    answer = completion_pb2.Completion(id="cmpl-1", model="m", choices=[choice])
    asked = request(echo=True, logprobs=1)
    [told] = to_builtins(completions.completion(answer, "m", asked))["choices"]
    assert told == {
        "index": 0,
        "text": "abc",
        "finish_reason": "length",
        "logprobs": {
            "tokens": ["a", "b", "c"],
            "token_logprobs": [None, -2.5, -9999.0],
            "top_logprobs": [None, {"x": -0.5, "b": -2.5}, {"c": -9999.0}],
            "text_offset": [0, 1, 2],
        },
    }


def test_prompt_logprobs_are_sent_if_requested() -> None:
    choice = completion_pb2.CompletionChoice(
        prompt_tokens=[
            prompt_token(b"a", None),
            prompt_token(b"b", -2.5, token(b"x", -0.5)),
            prompt_token(b"c", -0.1, token(b"c", -0.1)),
        ],
        token_ids=[5],
        prompt_token_ids=[97, 98, 99],
    )
    answer = completion_pb2.Completion(choices=[choice])
    [told] = to_builtins(completions.completion(answer, "m", request(prompt_logprobs=1)))["choices"]
    assert told["prompt_logprobs"] == [
        None,
        {
            "98": {"logprob": -2.5, "decoded_token": "b"},
            "120": {"logprob": -0.5, "decoded_token": "x", "rank": 1},
        },
        {"99": {"logprob": pytest.approx(-0.1), "decoded_token": "c", "rank": 1}},
    ]
    assert (told["token_ids"], told["prompt_token_ids"]) == ([5], [97, 98, 99])
    assert told["logprobs"] is None


def test_token_of_partial_character_is_named_by_its_bytes() -> None:
    choice = completion_pb2.CompletionChoice(
        logprobs=[token(b"\xe2", -1.0, token(b"\xe2", -1.0), token(b"\xe3", -2.0))],
        text_offsets=[0],
    )
    answer = completion_pb2.Completion(choices=[choice])
    [told] = to_builtins(completions.completion(answer, "m", request(logprobs=2)))["choices"]
    assert told["logprobs"]["tokens"] == [r"bytes:\xe2"]
    assert list(told["logprobs"]["top_logprobs"][0]) == [r"bytes:\xe2", r"bytes:\xe3"]


def test_sent_names_are_those_of_the_request() -> None:
    assert completions.sent_names(request(max_tokens=1)) == {
        "max_completion_tokens": "max_tokens",
        "prompt[0]": "prompt",
    }
    assert completions.sent_names(request(prompt=["a"])) == {}
    assert completions.sent_names(request(prompt=[1, 2]))["prompt[0]"] == "prompt"
