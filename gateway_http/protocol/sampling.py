"""The parameters that chat and text completions have in common."""

from typing import Annotated, Any, Literal

from msgspec import Meta, Raw, Struct, field

from chatrpc.v1.limits import LIMITS, REQUEST_ID_PATTERN
from gateway_http.protocol.field_notes import Accepted, Rejected, http_only, note, proto_field
from gateway_http.protocol.numbers import Float32, Int32, Int64, UInt32
from gateway_http.protocol.raw_json import RawObject, RawObjectOrText

# -1 means no limit but the context length, as in llama.cpp.
OutputLimit = Annotated[int, Meta(ge=-1, le=2**32 - 1)]
ChatTemplateKwargs = Annotated[
    dict[str, Any] | None,
    proto_field(
        "PromptOptions.chat_template_kwargs_json",
        description="Variables for the model's chat template.",
    ),
]

_NUM_CHOICES = LIMITS["SamplingParams.n"]
_TOKEN_ID_KEYS = Meta(extra_json_schema={"propertyNames": {"pattern": "^(0|[1-9][0-9]{0,9})$"}})


class SamplingParameters(Struct, kw_only=True):
    """The parameters of sampling and of the end of generation."""

    temperature: Float32 | None = None
    top_p: Float32 | None = None
    top_k: Annotated[
        Annotated[int, Meta(ge=-1, le=2**32 - 1)] | None, note("-1 is no limit, too.")
    ] = None
    min_p: Float32 | None = None
    presence_penalty: Float32 | None = None
    frequency_penalty: Float32 | None = None
    repetition_penalty: Float32 | None = None
    repeat_penalty: Annotated[
        Float32 | None,
        proto_field(
            "SamplingParams.repetition_penalty", note="llama.cpp's name of `repetition_penalty`."
        ),
    ] = None
    max_tokens: Annotated[
        OutputLimit | None,
        proto_field(
            "SamplingParams.max_completion_tokens",
            note="The older name of `max_completion_tokens`. -1 is all that the context leaves. In "
            "a text completion absent is 16, and 0 with `echo` scores only the prompt.",
        ),
    ] = None
    n_predict: Annotated[
        OutputLimit | None,
        proto_field(
            "SamplingParams.max_completion_tokens",
            note="llama.cpp's name of `max_completion_tokens`. -1 is all that the context leaves.",
        ),
    ] = None
    min_tokens: UInt32 | None = None
    seed: Int64 | None = None
    n: Annotated[int, Meta(ge=_NUM_CHOICES.minimum, le=_NUM_CHOICES.maximum)] | None = None
    stop: Annotated[
        str | list[str] | None,
        note("A string is a list of one. An empty string is the same as null."),
    ] = None
    stop_token_ids: list[UInt32] | None = None
    logit_bias: Annotated[dict[UInt32, Float32], _TOKEN_ID_KEYS] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: list[UInt32] | None = None


class TextFormat(Struct, tag_field="type", tag="text", forbid_unknown_fields=True):
    """Free text."""


class JsonObjectFormat(Struct, tag_field="type", tag="json_object", forbid_unknown_fields=True):
    """Any JSON object."""


class JsonSchema(Struct, forbid_unknown_fields=True, kw_only=True):
    """A JSON Schema with its name."""

    name: str
    description: str | None = None
    schema: Annotated[
        RawObject,
        proto_field(
            "JsonSchemaFormat.schema_json", description="The JSON Schema. Absent: any JSON."
        ),
    ] = field(default_factory=Raw)
    strict: bool | None = None


class JsonSchemaFormat(Struct, tag_field="type", tag="json_schema", forbid_unknown_fields=True):
    """JSON that follows a JSON Schema."""

    json_schema: JsonSchema


class StructuredOutputs(Struct, forbid_unknown_fields=True):
    """A response format in vLLM's form. Exactly one field is set."""

    json: Annotated[
        RawObjectOrText,
        proto_field("JsonSchemaFormat.schema_json", description="A JSON Schema, also as text."),
    ] = field(default_factory=Raw)
    regex: str | None = None
    choice: Annotated[
        list[str] | None, proto_field("ChoiceFormat.choices", "ResponseFormat.choice")
    ] = None
    grammar: str | None = None
    json_object: bool | None = None


class StreamOptions(Struct, forbid_unknown_fields=True):
    """Options of a stream."""

    include_usage: Annotated[
        bool | None, http_only("Send the usage in an event of its own before `[DONE]`.")
    ] = None
    continuous_usage_stats: Annotated[
        bool | None, http_only("With `include_usage`: send the usage so far in every event.")
    ] = None
    include_obfuscation: Annotated[bool | None, http_only("Accepted, without effect.")] = None


class GenerationRequest(SamplingParameters, kw_only=True):
    """The parameters that chat and text completions have in common."""

    model: str
    stream: Annotated[bool | None, http_only("Send the response as server-sent events.")] = None
    stream_options: Annotated[
        StreamOptions | None, http_only("Options of the stream. Valid only with `stream`.")
    ] = None
    response_format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None = None
    structured_outputs: Annotated[
        StructuredOutputs | None,
        proto_field(
            "ChatCompletionParams.response_format",
            "CompletionParams.response_format",
            note="vLLM's form of `response_format`; only one of the two may be set.",
        ),
    ] = None
    # Other servers' names of the formats in `structured_outputs`. An empty string is null.
    regex: Annotated[
        str | None, proto_field("ResponseFormat.regex", note="SGLang's name of the format.")
    ] = None
    ebnf: Annotated[
        str | None, proto_field("ResponseFormat.grammar", note="SGLang's name of the format.")
    ] = None
    grammar: Annotated[
        str | None, proto_field("ResponseFormat.grammar", note="llama.cpp's name of the format.")
    ] = None
    json_schema: Annotated[
        RawObjectOrText,
        proto_field(
            "JsonSchemaFormat.schema_json",
            description="A JSON Schema, also as text. SGLang's and llama.cpp's name of the format.",
        ),
    ] = field(default_factory=Raw)
    prompt_logprobs: UInt32 | None = None
    return_token_ids: bool | None = None
    truncate_prompt_tokens: UInt32 | None = None
    priority: Int32 | None = None
    cache_salt: str | None = None
    # Not `$` in the pattern, which matches before a newline at the end, too.
    request_id: Annotated[
        Annotated[str, Meta(pattern=rf"^{REQUEST_ID_PATTERN}(?![\s\S])")] | None,
        http_only("The id of the request, if the header X-Request-Id is absent."),
    ] = None
    user: str | None = None
    cache_prompt: Accepted = None  # llama.cpp's; equal beginnings of prompts are always cached

    def drop_input(self) -> None:
        """Free the model's input after it has been converted. No response depends on it.

        The input is most of a large request, and the request lives as long as its response.
        """
        self.response_format = self.structured_outputs = None
        self.regex = self.ebnf = self.grammar = None
        self.json_schema = Raw()


class ForeignParameters(GenerationRequest, kw_only=True):
    """Parameters of vLLM, SGLang and llama.cpp that are rejected unless they are null."""

    use_beam_search: Rejected = None
    length_penalty: Rejected = None
    spaces_between_special_tokens: Rejected = None
    guided_json: Rejected = None
    guided_regex: Rejected = None
    guided_choice: Rejected = None
    guided_grammar: Rejected = None
    logprob_token_ids: Rejected = None
    return_tokens_as_token_ids: Rejected = None
    vllm_xargs: Rejected = None
    truncation_side: Rejected = None
    watermarking: Rejected = None
    kv_transfer_params: Rejected = None
    lora_path: Rejected = None
    no_stop_trim: Rejected = None
    stop_regex: Rejected = None
    custom_logit_processor: Rejected = None
    return_hidden_states: Rejected = None
    mirostat: Rejected = None
    typical_p: Rejected = None
    dynatemp_range: Rejected = None
    dry_multiplier: Rejected = None
    xtc_probability: Rejected = None
    n_probs: Rejected = None
    n_keep: Rejected = None
    id_slot: Rejected = None
    samplers: Rejected = None
    timings_per_token: Rejected = None


ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
