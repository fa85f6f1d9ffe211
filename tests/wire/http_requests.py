"""The recorded requests to the gateway."""

import gzip
import json
from typing import Any

from tests.wire.cases import SECRET, HttpRequest, Setup

_USER = {"role": "user", "content": "Hi"}
_SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
_TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "description": "The weather.", "parameters": _SCHEMA},
    },
    {"type": "function", "function": {"name": "now"}},
]
_TOOL_CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
_SECOND_CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
_JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "place", "schema": _SCHEMA}}
_USAGE = {"include_usage": True}

_DEFAULT = Setup()
_CALLS = Setup(outputs=(_TOOL_CALL,))
_TWO_CALLS = Setup(outputs=(f"{_TOOL_CALL}\n{_SECOND_CALL}",))
_ARGUMENTS = Setup(outputs=('{"city": "Rome"}',))
_THINKS = Setup(outputs=("<think>Shall I? Yes.</think>Hello!",), reasoning="think")
_ANSWERS = Setup(outputs=("One, two", "Three and four"))
_EMBEDS = Setup(has_embeddings=True)
_ABSENT = object()


def _post(
    name: str,
    path: str,
    body: dict[str, Any],
    setup: Setup = _DEFAULT,
    headers: dict[str, str] | None = None,
) -> HttpRequest:
    return HttpRequest(name, "POST", path, body, headers=headers or {}, setup=setup)


def _chat(
    name: str,
    setup: Setup = _DEFAULT,
    headers: dict[str, str] | None = None,
    **fields: Any,
) -> HttpRequest:
    """Return a chat completion with the required fields and `fields`, without those `_ABSENT`."""
    body = {"model": "fake", "messages": [_USER], **fields}
    sent = {key: value for key, value in body.items() if value is not _ABSENT}
    return _post(f"chat_{name}", "/v1/chat/completions", sent, setup, headers)


def _embeddings(name: str, setup: Setup = _EMBEDS, **fields: Any) -> HttpRequest:
    """Return a request for embeddings with the required fields and `fields`, as `_chat` does."""
    body = {"model": "fake", "input": "Hi", **fields}
    sent = {key: value for key, value in body.items() if value is not _ABSENT}
    return _post(f"embeddings_{name}", "/v1/embeddings", sent, setup)


def _chat_both(name: str, setup: Setup = _DEFAULT, **fields: Any) -> list[HttpRequest]:
    """Return a chat completion, whole and streamed."""
    return [
        _chat(name, setup, **fields),
        _chat(f"{name}_streamed", setup, **fields, stream=True),
    ]


def _text(
    name: str,
    setup: Setup = _DEFAULT,
    **fields: Any,
) -> HttpRequest:
    """Return a text completion."""
    body = {"model": "fake", "prompt": "Say:", **fields}
    sent = {key: value for key, value in body.items() if value is not _ABSENT}
    return _post(f"text_{name}", "/v1/completions", sent, setup)


def _text_both(name: str, setup: Setup = _DEFAULT, **fields: Any) -> list[HttpRequest]:
    """Return a text completion, whole and streamed."""
    return [
        _text(name, setup, **fields),
        _text(f"{name}_streamed", setup, **fields, stream=True),
    ]


def _get(
    name: str,
    path: str,
    setup: Setup = _DEFAULT,
    **headers: str,
) -> HttpRequest:
    return HttpRequest(name, "GET", path, headers=headers, setup=setup)


def _raw(name: str, content: bytes, **headers: str) -> HttpRequest:
    """Return a chat completion with exactly this body and these headers."""
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    return HttpRequest(name, "POST", "/v1/chat/completions", content=content, headers=named)


_CHATS = [
    *_chat_both("simple"),
    *_chat_both("usage", Setup(num_cached_tokens=3), user="me", store=False, metadata={"a": "b"}),
    _chat("include_usage_streamed", stream=True, stream_options=_USAGE),
    _chat(
        "continuous_usage_streamed",
        stream=True,
        stream_options={**_USAGE, "continuous_usage_stats": True},
    ),
    _chat("by_alias", model="alias"),
    _chat("own_request_id", headers={"x-request-id": "mine"}),
    _chat("request_id_in_body", request_id="of-the-body"),
    _chat("null_fields", temperature=None, stop=None, tools=None, stream=None, n=None),
    *_chat_both("unicode", Setup(outputs=("äöü 🙂 \u2028 end",), tokens_per_step=1)),
    *_chat_both("half_character", Setup(outputs=("a🙂",), tokens_per_step=1), max_tokens=3),
    *_chat_both("empty_output", Setup(outputs=("",))),
    *_chat_both("logprobs", logprobs=True, max_tokens=5),
    *_chat_both("top_logprobs", logprobs=True, top_logprobs=2, max_tokens=5),
    *_chat_both("prompt_logprobs", prompt_logprobs=1, max_tokens=2),
    *_chat_both("token_ids", return_token_ids=True, max_completion_tokens=6),
    *_chat_both("stop", stop="wor"),
    *_chat_both("stop_across_steps", Setup(tokens_per_step=1), stop=["or", "world"]),
    *_chat_both("stop_included", stop=["lo"], include_stop_str_in_output=True),
    *_chat_both("stop_token", stop_token_ids=[ord(",")]),
    *_chat_both("choices", _ANSWERS, n=2),
    _chat("choices_usage_streamed", _ANSWERS, n=3, stream=True, stream_options=_USAGE),
    *_chat_both("choices_one_stopped", _ANSWERS, n=2, stop=["two"]),
    *_chat_both("max_tokens", max_tokens=5),
    _chat("max_completion_tokens_before_max_tokens", max_tokens=2, max_completion_tokens=4),
    _chat("max_tokens_unlimited", max_tokens=-1),
    _chat("context_is_used_up", Setup(outputs=("x" * 1000,), tokens_per_step=100)),
    _chat(
        "sampling_fields",
        temperature=0.5,
        top_p=0.9,
        top_k=-1,
        min_p=0.1,
        presence_penalty=1,
        frequency_penalty=-1,
        repetition_penalty=1.1,
        min_tokens=1,
        seed=-(2**63),
        logit_bias={"65": 100, "66": -100},
        bad_words=["no"],
        allowed_token_ids=[65, 66],
        ignore_eos=True,
        skip_special_tokens=False,
        priority=1,
        cache_salt="salt",
    ),
    _chat("seed_too_large", seed=2**63),
    *_chat_both("tools_auto_text", tools=_TOOLS, tool_choice="auto"),
    *_chat_both("tools_auto_call", _CALLS, tools=_TOOLS),
    *_chat_both("tools_text_and_call", Setup(outputs=(f"Let me see. {_TOOL_CALL}",)), tools=_TOOLS),
    *_chat_both("tools_parallel", _TWO_CALLS, tools=_TOOLS),
    *_chat_both("tools_not_parallel", _TWO_CALLS, tools=_TOOLS, parallel_tool_calls=False),
    *_chat_both("tools_required", _TWO_CALLS, tools=_TOOLS, tool_choice="required"),
    *_chat_both("tools_none", _CALLS, tools=_TOOLS, tool_choice="none"),
    *_chat_both(
        "tools_named",
        _CALLS,
        tools=_TOOLS,
        tool_choice={"type": "function", "function": {"name": "weather"}},
    ),
    _chat(
        "tools_allowed",
        _CALLS,
        tools=_TOOLS,
        tool_choice={
            "type": "allowed_tools",
            "allowed_tools": {
                "mode": "auto",
                "tools": [{"type": "function", "function": {"name": "weather"}}],
            },
        },
    ),
    _chat(
        "tools_named_unknown",
        tools=_TOOLS,
        tool_choice={"type": "function", "function": {"name": "other"}},
    ),
    _chat("tools_required_without_tools", tool_choice="required"),
    _chat("tools_choice_unknown", tools=_TOOLS, tool_choice="sometimes"),
    _chat("tools_duplicate", tools=[_TOOLS[1], _TOOLS[1]]),
    _chat("tools_bad_name", tools=[{"type": "function", "function": {"name": "a b"}}]),
    _chat(
        "tools_bad_schema",
        tools=[{"type": "function", "function": {"name": "a", "parameters": {"type": "what"}}}],
    ),
    _chat("tools_bad_type", tools=[{"type": "retrieval"}]),
    _chat("tools_without_grammars", Setup(has_grammars=False), tools=_TOOLS),
    _chat(
        "tool_messages",
        tools=_TOOLS,
        messages=[
            {"role": "system", "content": "Be brief."},
            _USER,
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "call_1",
                        "type": "function",
                        "function": {"name": "now", "arguments": "{}"},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": "noon"},
        ],
        prompt_logprobs=0,
        return_token_ids=True,
        max_tokens=1,
    ),
    _chat("tool_message_without_id", messages=[{"role": "tool", "content": "noon"}]),
    _chat(
        "content_parts",
        messages=[
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            }
        ],
        return_token_ids=True,
        max_tokens=1,
    ),
    *_chat_both("json_object", _ARGUMENTS, response_format={"type": "json_object"}),
    *_chat_both("json_schema", _ARGUMENTS, response_format=_JSON_SCHEMA),
    *_chat_both(
        "json_cut_off", Setup(outputs=('{"city": "R',)), response_format=_JSON_SCHEMA, max_tokens=8
    ),
    _chat("format_text", response_format={"type": "text"}),
    _chat("format_unknown", response_format={"type": "xml"}),
    _chat(
        "format_bad_schema",
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {"type": 1}},
        },
    ),
    _chat("format_without_grammars", Setup(has_grammars=False), response_format=_JSON_SCHEMA),
    _chat(
        "format_beside_required_tool",
        tools=_TOOLS,
        tool_choice="required",
        response_format=_JSON_SCHEMA,
    ),
    _chat("choice", Setup(outputs=("yes",)), structured_outputs={"choice": ["yes", "no"]}),
    _chat("regex", Setup(outputs=("aab",)), structured_outputs={"regex": "a+b"}),
    _chat("structured_outputs_two", structured_outputs={"regex": "a+b", "choice": ["a"]}),
    *_chat_both("reasoning", _THINKS),
    *_chat_both("reasoning_cut_off", _THINKS, max_tokens=12),
    _chat("reasoning_effort", _THINKS, reasoning_effort="low", return_token_ids=True, max_tokens=1),
    _chat("reasoning_effort_unknown", reasoning_effort="extreme"),
    _chat(
        "template_options",
        add_generation_prompt=False,
        chat_template_kwargs={"custom": 1},
        truncate_prompt_tokens=8,
        return_token_ids=True,
        max_tokens=1,
    ),
    _chat(
        "continued_message",
        messages=[_USER, {"role": "assistant", "content": "Well"}],
        continue_final_message=True,
        return_token_ids=True,
        max_tokens=1,
    ),
]

_CHAT_ERRORS = [
    _chat("model_absent", model=_ABSENT),
    _chat("model_empty", model=""),
    _chat("model_of_wrong_type", model=1),
    _chat("model_unknown", model="other"),
    _chat("model_unknown_streamed", model="other", stream=True),
    _chat("messages_absent", messages=_ABSENT),
    _chat("messages_empty", messages=[]),
    _chat("messages_of_wrong_type", messages="Hi"),
    _chat("message_role_unknown", messages=[{"role": "robot", "content": "Hi"}]),
    _chat("message_without_content", messages=[{"role": "user"}]),
    _chat("message_unknown_field", messages=[{**_USER, "colour": "red"}]),
    _chat("message_refused_by_template", messages=[{"role": "user", "content": "refuse me"}]),
    _chat(
        "message_image",
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
                ],
            }
        ],
    ),
    _chat("message_part_unknown", messages=[{"role": "user", "content": [{"type": "smell"}]}]),
    _chat("unknown_field", colour="red"),
    _chat("unserved_field", use_beam_search=True),
    _chat("unserved_field_with_hint", functions=[]),
    _chat("field_unsupported_by_model", Setup(unsupported=("top_k",)), top_k=5),
    _chat("unserved_audio", modalities=["text", "audio"]),
    _chat("temperature_too_high", temperature=2.5),
    _chat("temperature_of_wrong_type", temperature="hot"),
    _chat("top_p_too_high", top_p=1.5),
    _chat("penalty_too_low", presence_penalty=-3),
    _chat("n_zero", n=0),
    _chat("n_too_large", n=129),
    _chat("max_tokens_zero", max_tokens=0),
    _chat("max_tokens_fraction", max_tokens=1.5),
    _chat("max_completion_tokens_zero", max_completion_tokens=0),
    _chat("min_tokens_above_max", min_tokens=5, max_tokens=2),
    _chat("top_logprobs_without_logprobs", top_logprobs=2),
    _chat("top_logprobs_too_many", logprobs=True, top_logprobs=21),
    _chat("logit_bias_too_large", logit_bias={"65": 101}),
    _chat("logit_bias_of_unknown_token", logit_bias={"257": 1}),
    _chat("logit_bias_key_of_wrong_type", logit_bias={"a": 1}),
    _chat("stop_too_many", stop=[str(i) for i in range(65)]),
    _chat("stop_of_wrong_type", stop=7),
    _chat("stream_of_wrong_type", stream="yes"),
    _chat("stream_options_without_stream", stream_options=_USAGE),
    _chat("metadata_too_many", metadata={str(i): "" for i in range(17)}),
    _chat("user_too_long", user="u" * 513),
    _chat("context_length_exceeded", messages=[{"role": "user", "content": "x" * 1500}]),
    _chat("context_length_far_exceeded", messages=[{"role": "user", "content": "x" * 6000}]),
    _chat(
        "context_length_exceeded_streamed",
        messages=[{"role": "user", "content": "x" * 1500}],
        stream=True,
    ),
    _chat("queue_full", Setup(rejection="queue_full")),
    _chat("queue_full_streamed", Setup(rejection="queue_full"), stream=True),
    _chat("queue_share", Setup(rejection="queue_share")),
    _chat("engine_dead", Setup(rejection="engine_dead")),
    _chat("engine_dead_streamed", Setup(rejection="engine_dead"), stream=True),
    _chat("engine_dies", Setup(failure="engine_dead", fails_after=2)),
    _chat("engine_dies_streamed", Setup(failure="engine_dead", fails_after=2), stream=True),
    _chat("step_fails", Setup(failure="step_failed")),
    _chat("step_fails_streamed", Setup(failure="step_failed", fails_after=1), stream=True),
    _chat("grammar_fails", Setup(failure="constraint_failed")),
    _chat("deadline_passes", Setup(failure="deadline", fails_after=1)),
    _chat("deadline_passes_streamed", Setup(failure="deadline", fails_after=1), stream=True),
    _chat("unforeseen", Setup(failure="unforeseen"), headers={"x-request-id": "mine"}),
    _chat("unforeseen_streamed", Setup(failure="unforeseen", fails_after=1), stream=True),
    _chat("service_starting", Setup(state="starting")),
    _chat("service_draining", Setup(state="draining")),
    _chat("service_unreachable", Setup(state="unreachable")),
    _chat("service_unreachable_streamed", Setup(state="unreachable"), stream=True),
    _chat("without_key", Setup(has_keys=True)),
    _chat("wrong_key", Setup(has_keys=True), {"authorization": "Bearer other"}),
    _chat("right_key", Setup(has_keys=True), {"authorization": f"Bearer {SECRET}"}),
    _chat(
        "exceeds_limit",
        Setup(has_keys=True, key_limits=("tokens_per_minute = 10",)),
        {"authorization": f"Bearer {SECRET}"},
        messages=[{"role": "user", "content": "x" * 500}],
    ),
    _chat("model_forbidden", Setup(has_keys=True), {"x-api-key": SECRET}, model="secret"),
]

_TEXTS = [
    *_text_both("simple"),
    _text("include_usage_streamed", stream=True, stream_options=_USAGE),
    *_text_both("prompts", _ANSWERS, prompt=["First:", "Second one:"]),
    *_text_both("prompts_choices", _ANSWERS, prompt=["First:", "Second one:"], n=2),
    *_text_both("echo", echo=True, max_tokens=5),
    *_text_both("echo_logprobs", echo=True, logprobs=1, max_tokens=2),
    *_text_both("scored_only", echo=True, logprobs=2, max_tokens=0),
    *_text_both("logprobs", logprobs=2, max_tokens=3),
    *_text_both("prompt_logprobs", prompt_logprobs=1, max_tokens=2),
    *_text_both("token_prompt", prompt=[72, 105], return_token_ids=True, max_tokens=3),
    _text("token_prompts", prompt=[[72], [105]], echo=True, max_tokens=1),
    *_text_both("stop", stop=["wor"]),
    *_text_both("choices", _ANSWERS, n=2, best_of=2),
    _text("default_max_tokens", Setup(outputs=("x" * 30,))),
    _text("max_tokens_unlimited", Setup(outputs=("x" * 30,)), max_tokens=-1),
    _text("json_schema", _ARGUMENTS, response_format=_JSON_SCHEMA, max_tokens=50),
    _text(
        "options", truncate_prompt_tokens=2, add_special_tokens=False, echo=True, user="me", seed=1
    ),
    _text("engine_dies_streamed", Setup(failure="engine_dead", fails_after=1), stream=True),
    _text("queue_full", Setup(rejection="queue_full")),
    _text("suffix", suffix="end"),
    _text("best_of_too_large", best_of=3),
    _text("prompt_absent", prompt=_ABSENT),
    _text("prompt_empty", prompt=""),
    _text("prompt_empty_list", prompt=[]),
    _text("prompt_of_wrong_type", prompt={"text": "Hi"}),
    _text("prompt_of_mixed_types", prompt=["a", 1]),
    _text("prompt_unknown_token", prompt=[257]),
    _text("prompts_too_many", prompt=["a"] * 129),
    _text("max_tokens_zero", max_tokens=0),
    _text("logprobs_too_many", logprobs=21),
    _text("unknown_field", colour="red"),
    _text("unserved_field", length_penalty=1),
    _text("field_unsupported_by_model", Setup(unsupported=("priority",)), priority=1),
    _text("model_unknown", model="other"),
    _text("context_length_exceeded", prompt="x" * 1500),
    _text("context_length_exceeded_second_prompt", prompt=[[1], [1] * 1000]),
]

_EMBEDDINGS = [
    _embeddings("text"),
    _embeddings("texts_base64", input=["Hi", "there"], encoding_format="base64", dimensions=2),
    _embeddings("token_ids", input=[72, 105], user="me"),
    _embeddings("token_id_lists", input=[[72], [105, 106]]),
    _embeddings("input_absent", input=_ABSENT),
    _embeddings("input_empty", input=["Hi", ""]),
    _embeddings("input_of_mixed_types", input=["a", 1]),
    _embeddings("inputs_too_many", input=["a"] * 2049),
    _embeddings("dimensions_zero", dimensions=0),
    _embeddings("encoding_format_unknown", encoding_format="int8"),
    _embeddings("unserved_field", embed_dtype="float16"),
    _embeddings("unknown_field", colour="red"),
    _embeddings("model_unknown", model="other"),
    _embeddings("not_served_by_model", _DEFAULT),
]

_MESSAGE = {"model": "fake", "max_tokens": 8, "messages": [_USER]}
_MESSAGES = [
    _post("message", "/v1/messages", _MESSAGE),
    _post("message_stream", "/v1/messages", _MESSAGE | {"stream": True}),
    _post("message_bare_path", "/messages", _MESSAGE | {"system": "Be brief."}),
    _post("message_without_limit", "/v1/messages", {"model": "fake", "messages": [_USER]}),
    _post("message_temperature_too_high", "/v1/messages", _MESSAGE | {"temperature": 2.5}),
    _post("message_unserved_field", "/v1/messages", _MESSAGE | {"container": "c"}),
    _post("message_model_unknown", "/v1/messages", _MESSAGE | {"model": "other"}),
    _post("message_tokens", "/v1/messages/count_tokens", {"model": "fake", "messages": [_USER]}),
]

_TOKENS = [
    _post("tokenize_prompt", "/tokenize", {"model": "fake", "prompt": "aé"}),
    _post(
        "tokenize_strings",
        "/v1/tokenize",
        {"prompt": "aé", "return_token_strs": True, "add_special_tokens": False},
    ),
    _post("tokenize_content", "/tokenize", {"content": "aé", "with_pieces": True}),
    _post("tokenize_messages", "/tokenize", {"model": "fake", "messages": [_USER]}),
    _post("tokenize_nothing", "/tokenize", {"model": "fake"}),
    _post("tokenize_two_inputs", "/tokenize", {"prompt": "a", "content": "b"}),
    _post("tokenize_tools", "/tokenize", {"messages": [_USER], "tools": _TOOLS}),
    _post("tokenize_unserved", "/tokenize", {"messages": [_USER], "chat_template": "x"}),
    _post("tokenize_too_long", "/tokenize", {"prompt": "x" * 6000}),
    _post("tokenize_unknown_model", "/tokenize", {"model": "other", "prompt": "a"}),
    _post("detokenize", "/detokenize", {"model": "fake", "tokens": [72, 105, 256]}),
    _post("detokenize_without_model", "/v1/detokenize", {"tokens": []}),
    _post("detokenize_unknown_token", "/detokenize", {"tokens": [1000]}),
    _post("detokenize_wrong_type", "/detokenize", {"tokens": [-1]}),
]

_OTHERS = [
    _get("models", "/v1/models"),
    _get("models_bare_path", "/models"),
    _get("models_service_starting", "/v1/models", Setup(state="starting")),
    _get("models_service_unreachable", "/v1/models", Setup(state="unreachable")),
    _get("model", "/v1/models/fake"),
    _get("model_by_alias", "/v1/models/alias"),
    _get("model_unknown", "/v1/models/org%2Fother"),
    _get("model_forbidden", "/v1/models/other", Setup(has_keys=True), **{"x-api-key": SECRET}),
    _get("models_without_key", "/v1/models", Setup(has_keys=True)),
    _get("index", "/"),
    _get("index_page", "/", accept="text/html"),
    _get("version", "/version"),
    _get("openapi", "/openapi.json"),
    *(
        _get(f"probe_{name}", f"/{name}")
        for name in ("readyz", "ready", "health", "ping", "healthz", "live")
    ),
    _get("probe_health_ready", "/v1/health/ready"),
    _get("probe_health_live", "/v1/health/live"),
    _get("metadata", "/v1/metadata"),
    _get("metadata_without_key", "/v1/metadata", Setup(has_keys=True)),
    _get("probe_readyz_starting", "/readyz", Setup(state="starting")),
    _get("probe_readyz_unreachable", "/readyz", Setup(state="unreachable")),
    _get("probe_healthz_unreachable", "/healthz", Setup(state="unreachable")),
    HttpRequest("probe_head", "HEAD", "/healthz"),
    _get("path_unknown", "/v1/nothing"),
    _get("path_unserved", "/v1/images/generations"),
    _get("path_with_extra_slashes", "//v1//models/"),
    _get("method_wrong", "/v1/chat/completions"),
    HttpRequest("method_delete", "DELETE", "/v1/models/fake"),
    HttpRequest("method_options", "OPTIONS", "/v1/models"),
    HttpRequest(
        "cors_preflight",
        "OPTIONS",
        "/v1/chat/completions",
        headers={
            "origin": "http://localhost:3000",
            "access-control-request-method": "POST",
            "access-control-request-headers": "content-type",
        },
    ),
    _get("cors_allowed_origin", "/v1/models", origin="http://localhost:3000"),
    _get("cors_other_origin", "/v1/models", origin="https://example.org"),
    _get("host_of_another_site", "/v1/models", host="example.org"),
    _raw("body_empty", b""),
    _raw("body_not_json", b'{"model": fake}'),
    _raw("body_cut_off", b'{"model": "fake"'),
    _raw("body_array", b"[]"),
    _raw("body_not_utf8", b'{"model": "\xff"}'),
    _raw("body_of_wrong_content_type", b"{}", content_type="text/plain"),
    _raw("body_of_wrong_charset", b"{}", content_type="application/json; charset=latin-1"),
    _raw(
        "body_compressed",
        gzip.compress(json.dumps({"model": "fake", "messages": [_USER]}).encode()),
        content_encoding="gzip",
    ),
    _raw("body_of_unknown_coding", b"{}", content_encoding="br"),
    _raw("body_of_damaged_coding", b"{}", content_encoding="gzip"),
    _chat("body_too_large", Setup(gateway={"max_body_bytes": 50})),
    _raw("expectation_unknown", b"{}", expect="more"),
    _get("headers_too_large", "/v1/models", x="x" * 70_000),
]

HTTP_REQUESTS = [*_CHATS, *_CHAT_ERRORS, *_TEXTS, *_MESSAGES, *_EMBEDDINGS, *_TOKENS, *_OTHERS]
