"""The recorded calls of the service."""

import json
from typing import Any

from tests.wire.cases import SECRET, GrpcCall, Setup

_CHAT = "chatrpc.v1.ChatService"
_COMPLETION = "chatrpc.v1.CompletionService"
_MODEL = "chatrpc.v1.ModelService"

_USER = {"role": "ROLE_USER", "content": [{"text": "Hi"}]}
_SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    }
)
_TOOLS = [
    {
        "function": {
            "name": "weather",
            "description": "The weather.",
            "parametersJsonSchema": _SCHEMA,
            "strict": True,
        }
    },
    {"function": {"name": "now"}},
]
_TOOL_CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
_DEFAULT = Setup()
_EMBEDS = Setup(has_embeddings=True)
_CALLS = Setup(outputs=(_TOOL_CALL,))
_ARGUMENTS = Setup(outputs=('{"city": "Rome"}',))
_THINKS = Setup(outputs=("<think>Shall I? Yes.</think>Hello!",), reasoning="think")
_ANSWERS = Setup(outputs=("One, two", "Three and four"))

Metadata = tuple[tuple[str, str | bytes], ...]


def _chat(
    name: str,
    setup: Setup = _DEFAULT,
    metadata: Metadata = (),
    **fields: Any,
) -> list[GrpcCall]:
    """Return a chat completion, unary and streamed, with the required fields and `fields`."""
    params = {"params": {"model": "fake", "messages": [_USER], **fields}}
    methods = {"": "CreateChatCompletion", "_streamed": "StreamChatCompletion"}
    return [
        GrpcCall(f"chat_{name}{ending}", f"{_CHAT}/{method}", params, metadata, setup)
        for ending, method in methods.items()
    ]


def _text(
    name: str,
    setup: Setup = _DEFAULT,
    **fields: Any,
) -> list[GrpcCall]:
    """Return a text completion, unary and streamed."""
    params = {"params": {"model": "fake", "prompts": [{"text": "Say:"}], **fields}}
    methods = {"": "CreateCompletion", "_streamed": "StreamCompletion"}
    return [
        GrpcCall(f"text_{name}{ending}", f"{_COMPLETION}/{method}", params, (), setup)
        for ending, method in methods.items()
    ]


def _model(
    name: str,
    method: str,
    setup: Setup = _DEFAULT,
    metadata: Metadata = (),
    **fields: Any,
) -> GrpcCall:
    return GrpcCall(name, f"{_MODEL}/{method}", fields, metadata, setup)


def _embeddings(name: str, setup: Setup = _EMBEDS, **fields: Any) -> GrpcCall:
    method = "chatrpc.v1.EmbeddingService/CreateEmbeddings"
    return GrpcCall(f"embeddings_{name}", method, fields, setup=setup)


_CHATS = [
    *_chat("simple", Setup(num_cached_tokens=3)),
    *_chat("own_request_id", metadata=(("x-request-id", "mine"),)),
    *_chat("logprobs", logprobs=True, topLogprobs=2, sampling={"maxCompletionTokens": 3}),
    *_chat("prompt_logprobs", promptLogprobs=1, sampling={"maxCompletionTokens": 2}),
    *_chat("token_ids", returnTokenIds=True, sampling={"maxCompletionTokens": 6}),
    *_chat("stop", sampling={"stop": ["wor"]}),
    *_chat("stop_token", sampling={"stopTokenIds": [ord(",")]}),
    *_chat("choices", _ANSWERS, sampling={"n": 2}),
    *_chat("tools_auto", _CALLS, tools=_TOOLS),
    *_chat("tools_required", _CALLS, tools=_TOOLS, toolChoice={"mode": "MODE_REQUIRED"}),
    *_chat("tools_named", _CALLS, tools=_TOOLS, toolChoice={"functionName": "weather"}),
    *_chat("json_object", _ARGUMENTS, responseFormat={"jsonObject": {}}),
    *_chat("json_schema", _ARGUMENTS, responseFormat={"jsonSchema": {"schemaJson": _SCHEMA}}),
    *_chat("reasoning", _THINKS),
    *_chat("right_key", Setup(has_keys=True), (("authorization", f"Bearer {SECRET}"),)),
    *_chat("model_absent", model=""),
    *_chat("model_unknown", model="other"),
    *_chat("messages_absent", messages=[]),
    *_chat("role_absent", messages=[{"content": [{"text": "Hi"}]}]),
    *_chat("content_absent", messages=[{"role": "ROLE_USER"}]),
    *_chat("image", messages=[{"role": "ROLE_USER", "content": [{"image": {"url": "a"}}]}]),
    *_chat(
        "template_refuses", messages=[{"role": "ROLE_USER", "content": [{"text": "refuse me"}]}]
    ),
    *_chat("temperature_too_high", sampling={"temperature": 2.5}),
    *_chat("n_zero", sampling={"n": 0}),
    *_chat("max_tokens_zero", sampling={"maxCompletionTokens": 0}),
    *_chat("logit_bias_of_unknown_token", sampling={"logitBias": {"257": 1}}),
    *_chat("tool_choice_unknown", tools=_TOOLS, toolChoice={"functionName": "other"}),
    *_chat("unserved_audio", modalities=["MODALITY_AUDIO"]),
    *_chat(
        "context_length_exceeded",
        messages=[{"role": "ROLE_USER", "content": [{"text": "x" * 1500}]}],
    ),
    *_chat("queue_full", Setup(rejection="queue_full")),
    *_chat("queue_share", Setup(rejection="queue_share")),
    *_chat("engine_dead", Setup(rejection="engine_dead")),
    *_chat("engine_dies", Setup(failure="engine_dead", fails_after=2)),
    *_chat("step_fails", Setup(failure="step_failed", fails_after=1)),
    *_chat("deadline_passes", Setup(failure="deadline", fails_after=1)),
    *_chat("unforeseen", Setup(failure="unforeseen", fails_after=1)),
    *_chat("service_starting", Setup(state="starting")),
    *_chat("service_draining", Setup(state="draining")),
    *_chat("without_key", Setup(has_keys=True)),
    *_chat("wrong_key", Setup(has_keys=True), (("x-api-key", "other"),)),
    *_chat(
        "exceeds_limit",
        Setup(has_keys=True, key_limits=("tokens_per_minute = 10",)),
        (("x-api-key", SECRET),),
        messages=[{"role": "ROLE_USER", "content": [{"text": "x" * 500}]}],
    ),
    *_chat("model_forbidden", Setup(has_keys=True), (("x-api-key", SECRET),), model="secret"),
    GrpcCall("chat_request_malformed", f"{_CHAT}/CreateChatCompletion", b"\xff\xff"),
    GrpcCall("chat_request_empty", f"{_CHAT}/StreamChatCompletion", b""),
]

_TEXTS = [
    *_text("simple"),
    *_text("prompts", _ANSWERS, prompts=[{"text": "First:"}, {"tokenIds": {"ids": [72, 105]}}]),
    *_text("prompts_choices", _ANSWERS, prompts=[{"text": "a"}, {"text": "b"}], sampling={"n": 2}),
    *_text("echo_logprobs", echo=True, logprobs=1, sampling={"maxCompletionTokens": 2}),
    *_text("scored_only", echo=True, logprobs=2, sampling={"maxCompletionTokens": 0}),
    *_text("prompt_logprobs", promptLogprobs=1, sampling={"maxCompletionTokens": 2}),
    *_text("token_ids", returnTokenIds=True, addSpecialTokens=False),
    *_text("suffix", suffix="end"),
    *_text("prompts_absent", prompts=[]),
    *_text("prompt_empty", prompts=[{}]),
    *_text("max_tokens_zero", sampling={"maxCompletionTokens": 0}),
    *_text("context_length_exceeded", prompts=[{"text": "x" * 1500}]),
    *_text("engine_dies", Setup(failure="engine_dead", fails_after=1)),
]

_MODELS = [
    _model("list_models", "ListModels"),
    _model("list_models_bad_page", "ListModels", pageToken="nothing"),
    _model("list_models_starting", "ListModels", Setup(state="starting")),
    _model("get_model", "GetModel", id="fake"),
    _model("get_model_by_alias", "GetModel", id="alias"),
    _model("get_model_absent", "GetModel"),
    _model("get_model_limited", "GetModel", Setup(unsupported=("top_k", "priority")), id="fake"),
    _model("get_model_unknown", "GetModel", id="other"),
    _model("get_model_starting", "GetModel", Setup(state="starting"), id="fake"),
    _model("get_model_without_key", "GetModel", Setup(has_keys=True), id="fake"),
    _model("tokenize_text", "Tokenize", model="fake", text="aé", returnTokenBytes=True),
    _model(
        "tokenize_conversation",
        "Tokenize",
        model="fake",
        conversation={"messages": [_USER], "prompt": {"addGenerationPrompt": False}},
    ),
    _model("tokenize_nothing", "Tokenize", model="fake"),
    _model("tokenize_too_long", "Tokenize", model="fake", text="x" * 6000),
    _model("tokenize_unknown_model", "Tokenize", model="other", text="a"),
    _model("detokenize", "Detokenize", model="fake", tokenIds=[72, 105, 256]),
    _model("detokenize_unknown_token", "Detokenize", model="fake", tokenIds=[1000]),
    *(
        GrpcCall(
            f"health_{state}_{name}",
            "grpc.health.v1.Health/Check",
            {"service": service},
            (),
            Setup(state=state),
        )
        for state in ("serving", "starting", "draining")
        for name, service in (
            ("all", ""),
            ("liveness", "liveness"),
            ("startup", "startup"),
            ("model", "fake"),
        )
    ),
    GrpcCall("health_unknown", "grpc.health.v1.Health/Check", {"service": "nothing"}),
    GrpcCall("method_unknown", f"{_CHAT}/Nothing"),
    GrpcCall("service_unknown", "chatrpc.v1.Nothing/Nothing"),
]

_EMBEDDINGS = [
    _embeddings("texts", model="fake", textInputs={"texts": ["Hi", "there"]}, dimensions=2),
    _embeddings("token_ids", model="fake", tokenInputs={"tokenIds": [{"ids": [72, 105]}]}),
    _embeddings("input_absent", model="fake"),
    _embeddings("input_empty", model="fake", textInputs={"texts": ["Hi", ""]}),
    _embeddings("model_unknown", model="other", textInputs={"texts": ["Hi"]}),
    _embeddings("not_served_by_model", _DEFAULT, model="fake", textInputs={"texts": ["Hi"]}),
]

GRPC_CALLS = [*_CHATS, *_TEXTS, *_EMBEDDINGS, *_MODELS]
