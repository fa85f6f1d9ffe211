"""POST /v1/decisions, with httpx and with the OpenAI client."""

import asyncio
import json
from pathlib import Path
from typing import Any, get_args, get_type_hints

import grpc
import httpx
import msgspec
import openai
import pytest
from openai.types import Decision, decision_create_params
from pydantic import TypeAdapter

from chatrpc.v1 import chat_pb2, decision_service_pb2
from gateway_http.convert import decisions as convert
from gateway_http.protocol import decisions
from tests.fakes.chat_service import MODEL, PROMPT_TOKENS, Fail, FakeService
from tests.support.api_keys import SECRET, key
from tests.support.gateway import metric, serving

PREDICATE: dict[str, Any] = {"type": "predicate", "instructions": "It rains."}
CHOICE: dict[str, Any] = {
    "type": "choice",
    "name": "which",
    "instructions": "Which?",
    "choices": [{"value": "true"}, {"value": True, "description": "really"}],
}
SCORE: dict[str, Any] = {
    "type": "score",
    "instructions": "How wet?",
    "levels": [{"label": "dry"}, {"label": "wet", "description": "soaked"}],
}


def body(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "input": "hi", "questions": [PREDICATE]} | fields


async def error_of(http: httpx.AsyncClient, **fields: Any) -> tuple[int, Any]:
    response = await http.post("/v1/decisions", json=body(**fields))
    return response.status_code, response.json()["error"]


def sent(service: FakeService) -> decision_service_pb2.CreateDecisionRequest:
    request: decision_service_pb2.CreateDecisionRequest = service.calls[0].params
    return request


@pytest.mark.parametrize("path", ["/v1/decisions", "/decisions"])
async def test_questions_of_all_kinds_have_probabilities(
    http: httpx.AsyncClient, path: str
) -> None:
    response = await http.post(path, json=body(questions=[PREDICATE, CHOICE, SCORE]))

    assert response.json() == {
        "model": MODEL,
        "answers": [
            {"type": "predicate", "name": None, "probability": pytest.approx(1 / 3)},
            {
                "type": "choice",
                "name": "which",
                "choice": True,
                "confidence": 0.5,
                "probabilities": [
                    {"value": "true", "probability": pytest.approx(1 / 3)},
                    {"value": True, "probability": pytest.approx(2 / 3)},
                ],
            },
            {
                "type": "score",
                "name": None,
                "score": 0.25,
                "confidence": 0.5,
                "probabilities": [
                    {"value": 0, "label": "dry", "probability": pytest.approx(1 / 3)},
                    {"value": 1, "label": "wet", "probability": pytest.approx(2 / 3)},
                ],
            },
        ],
        "usage": {
            "input_tokens": 3 * PROMPT_TOKENS,
            "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 0},
            "output_tokens": 2,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 3 * PROMPT_TOKENS + 2,
        },
    }
    TypeAdapter(Decision).validate_json(response.content, strict=True)


async def test_openai_client_reads_answers(url: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        decision = await client.decisions.create(
            model=MODEL,
            input=[{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}],
            questions=[PREDICATE, CHOICE, SCORE],  # type: ignore[list-item]  # plain dicts
            prompt_cache_key="key",
            prompt_cache_options={"mode": "implicit", "ttl": "30m"},
            safety_identifier="me",
        )

    assert [answer.type for answer in decision.answers] == ["predicate", "choice", "score"]
    assert decision.answers[1].type == "choice"
    assert decision.answers[1].choice is True


async def test_string_is_one_message_of_the_user(
    http: httpx.AsyncClient, service: FakeService
) -> None:
    await http.post("/v1/decisions", json=body(safety_identifier="me", priority=3))

    request = sent(service)
    [message] = request.messages
    assert (message.role, message.content[0].text) == (chat_pb2.ROLE_USER, "hi")
    assert (request.model, request.safety_identifier, request.priority) == (MODEL, "me", 3)


ITEMS: list[dict[str, Any]] = [
    {"role": "developer", "content": "Be brief."},
    {
        "role": "user",
        "content": [
            {"type": "input_text", "text": "a"},
            {"type": "input_json", "data": {"n": 12345678901234567890, "x": [1, 2]}},
            {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "low"},
        ],
    },
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b"}]},
    {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}", "namespace": "n"},
    {"type": "custom_tool_call", "call_id": "2", "name": "g", "input": "free"},
    {"type": "function_call_output", "call_id": "1", "output": "c"},
    {
        "type": "custom_tool_call_output",
        "call_id": "2",
        "output": [{"type": "input_text", "text": "d"}, {"type": "input_text", "text": "e"}],
    },
    {"type": "function_call", "call_id": "3", "name": "h", "arguments": "{}"},
]


async def test_items_become_messages(http: httpx.AsyncClient, service: FakeService) -> None:
    await http.post("/v1/decisions", json=body(input=ITEMS))

    developer, user, assistant, first, second, last = sent(service).messages
    assert developer.role == chat_pb2.ROLE_DEVELOPER
    assert user.content[1].text == '\n{"n":12345678901234567890,"x":[1,2]}'
    assert user.content[2].image.url.startswith("data:")
    assert assistant.content[0].text == "b"
    assert [(call.id, call.function.name) for call in assistant.tool_calls] == [
        ("1", "n.f"),
        ("2", "g"),
    ]
    assert json.loads(assistant.tool_calls[1].function.arguments_json) == {"input": "free"}
    assert (first.role, first.tool_call_id, first.content[0].text) == (chat_pb2.ROLE_TOOL, "1", "c")
    assert (second.tool_call_id, [part.text for part in second.content]) == ("2", ["d", "\ne"])
    assert (last.role, last.tool_calls[0].id) == (chat_pb2.ROLE_ASSISTANT, "3")


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"input": ""}, "input", "invalid_value"),
        ({"input": []}, "input", "empty_array"),
        ({"input": 5}, "input", "invalid_type"),
        ({"questions": []}, "questions", "empty_array"),
        ({"questions": [{}]}, "questions[0].type", "missing_required_parameter"),
        ({"questions": [{"type": "x"}]}, "questions[0].type", "invalid_value"),
        (
            {"questions": [{"type": "predicate"}]},
            "questions[0].instructions",
            "missing_required_parameter",
        ),
        (
            {"questions": [CHOICE | {"choices": [{"value": 1}]}]},
            "questions[0].choices[0].value",
            "invalid_type",
        ),
        (
            {"questions": [PREDICATE | {"choices": []}]},
            "questions[0].choices",
            "unknown_parameter",
        ),
        (
            {
                "questions": [
                    PREDICATE | {"instructions": [{"type": "input_image", "image_url": "x"}]}
                ]
            },
            "questions[0].instructions[0]",
            "unsupported_parameter",
        ),
        ({"temperature": 1}, "temperature", "unknown_parameter"),
        ({"prompt_cache_options": {"ttl": "1h"}}, "prompt_cache_options.ttl", "invalid_value"),
        ({"input": [{"role": "user"}]}, "input[0].content", "missing_required_parameter"),
        ({"input": [{"content": "x"}]}, "input[0].role", "missing_required_parameter"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role", "invalid_value"),
        (
            {"input": [{"role": "user", "content": "x", "arguments": "{}"}]},
            "input[0].arguments",
            "unknown_parameter",
        ),
        ({"input": [{"type": "reasoning"}]}, "input[0].type", "invalid_value"),
        (
            {"input": [{"type": "function_call", "call_id": "1", "name": "f"}]},
            "input[0].arguments",
            "missing_required_parameter",
        ),
        (
            {"input": [{"type": "function_call_output", "call_id": "1", "output": "x"}]},
            "input[0].call_id",
            "invalid_value",
        ),
        (
            {"input": [ITEMS[4], {**ITEMS[5], "call_id": "2"}]},  # of another kind
            "input[1].call_id",
            "invalid_value",
        ),
        (
            {"input": [{"role": "system", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0]",
            "invalid_value",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "output_text", "text": "x"}]}]},
            "input[0].content[0]",
            "invalid_value",
        ),
    ],
)
async def test_invalid_field_is_rejected_by_its_path(
    http: httpx.AsyncClient, service: FakeService, fields: dict[str, Any], param: str, code: str
) -> None:
    status, error = await error_of(http, **fields)

    assert (status, error["param"], error["code"]) == (400, param, code), error["message"]
    assert not service.calls


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (5, "expected an object"),
        ([{}, 5], "expected an object"),
        (nested(convert.MAX_JSON_DEPTH + 1), "levels"),
        ({"a": [1] * convert.MAX_JSON_VALUES}, "values"),
        ({"a": "x" * convert.MAX_JSON_BYTES}, "bytes"),
    ],
)
async def test_json_over_a_limit_is_rejected(
    http: httpx.AsyncClient, data: Any, words: str
) -> None:
    content = [{"type": "input_json", "data": data}]
    status, error = await error_of(http, input=[{"role": "user", "content": content}])

    assert (status, error["param"]) == (400, "input[0].content[0].data")
    assert words in error["message"]


async def test_number_out_of_range_is_rejected(http: httpx.AsyncClient) -> None:
    parts: Any = [{"type": "input_json", "data": {"a": "number"}}]
    content = msgspec.json.encode(body(input=[{"role": "user", "content": parts}]))
    content = content.replace(b'"number"', b"1e999")
    headers = {"content-type": "application/json"}
    response = await http.post("/v1/decisions", content=content, headers=headers)

    assert response.status_code == 400
    assert response.json()["error"]["param"] == "input[0].content[0].data"


async def test_json_at_its_limits_is_accepted(http: httpx.AsyncClient) -> None:
    parts = [
        {"type": "input_json", "data": data}
        for data in (nested(convert.MAX_JSON_DEPTH), {"a": [1] * (convert.MAX_JSON_VALUES - 2)})
    ]
    response = await http.post(
        "/v1/decisions", json=body(input=[{"role": "user", "content": parts}])
    )
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ("messages[1].content[2].image", "input[1].content[2].image_url"),
        ("messages[2].tool_calls[1].function.name", "input[4].function.name"),
        ("messages[3].content", "input[5].output"),
        ("messages[4].tool_call_id", "input[6].call_id"),
        ("messages[5]", "input[7]"),
        ("messages", "input"),
        ("questions[0].choice.choices[1].text", "questions[0].choices[1].value"),
        ("questions[1].score.levels", "questions[1].levels"),
        ("cache_salt", "cache_salt"),
    ],
)
async def test_error_of_the_service_names_the_clients_field(
    http: httpx.AsyncClient, service: FakeService, field: str, param: str
) -> None:
    code = grpc.StatusCode.INVALID_ARGUMENT
    service.decision_error = Fail(code, "is wrong.", "INVALID_FIELD", field)

    status, error = await error_of(http, input=ITEMS, questions=[CHOICE, SCORE])

    assert (status, error["param"]) == (400, param)
    assert error["message"] == f"{param} is wrong."


async def test_model_without_decisions_is_rejected(
    http: httpx.AsyncClient, service: FakeService
) -> None:
    words = "This model does not support CreateDecision."
    service.decision_error = Fail(grpc.StatusCode.UNIMPLEMENTED, words, "UNSUPPORTED_METHOD")

    status, error = await error_of(http)

    assert (status, error["message"]) == (400, words)


async def test_tokens_are_counted(http: httpx.AsyncClient) -> None:
    await http.post("/v1/decisions", json=body())

    labels = {"model": MODEL}
    assert await metric(http, "chatrpc_gateway_prompt_tokens_total", labels) == PROMPT_TOKENS
    assert await metric(http, "chatrpc_gateway_generation_tokens_total", labels) == 2


async def test_disconnected_client_cancels_the_call(
    http: httpx.AsyncClient, service: FakeService
) -> None:
    service.holds_tokens = True
    request = asyncio.ensure_future(http.post("/v1/decisions", json=body()))
    await service.called()

    request.cancel()

    await service.cancelled()


async def test_key_is_charged_for_the_input_of_each_question(
    service: FakeService, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(key(SECRET, "tokens_per_minute = 10000"))
    headers = {"authorization": f"Bearer {SECRET}"}
    async with (
        serving(upstream=service.target, api_keys=keys) as url,
        httpx.AsyncClient(base_url=url, headers=headers) as client,
    ):
        accepted = await client.post("/v1/decisions", json=body(questions=[PREDICATE] * 2))
        # 100 prompts of at least 2500 tokens are more than the key may ever use.
        rejected = await client.post(
            "/v1/decisions", json=body(input="x" * 20_000, questions=[PREDICATE] * 100)
        )

    remaining = int(accepted.headers["x-ratelimit-remaining-tokens"])
    assert remaining == pytest.approx(10_000 - 2 * PROMPT_TOKENS - 2, abs=5)
    assert (rejected.status_code, rejected.json()["error"]["param"]) == (400, "input")


def fields_of(kind: Any) -> set[str]:
    return set(get_type_hints(kind))


def test_every_field_of_the_openai_client_is_known() -> None:
    """A new field in a new version of the client fails this test."""
    params: Any = decision_create_params
    questions = {
        decisions.PredicateQuestion: params.QuestionQuestionParamPredicate,
        decisions.ChoiceQuestion: params.QuestionQuestionParamChoice,
        decisions.ScoreQuestion: params.QuestionQuestionParamScore,
    }
    assert set(get_args(params.Question)) == set(questions.values())
    for ours, theirs in questions.items():
        assert fields_of(theirs) == {*ours.__struct_fields__, "type"}
    pairs = {
        decisions.DecisionChoice: params.QuestionQuestionParamChoiceChoice,
        decisions.DecisionLevel: params.QuestionQuestionParamScoreLevel,
        decisions.DecisionCacheOptions: params.PromptCacheOptions,
    }
    for ours, theirs in pairs.items():
        assert fields_of(theirs) == set(ours.__struct_fields__)
    ours_only = {"priority", "cache_salt"}
    known = set(decisions.DecisionRequest.__struct_fields__)
    assert fields_of(params.DecisionCreateParams) == known - ours_only
    items = get_args(params.InputUnionMember1)
    assert set().union(*map(fields_of, items)) == set(decisions.DecisionInputItem.__struct_fields__)
    parts = get_args(params.DecisionInputPartUnionParam)
    tags = {get_args(get_type_hints(part)["type"])[0] for part in parts}
    assert tags == {kind.__struct_config__.tag for kind in get_args(decisions.QuestionPart)}
