"""What chat and text completions have in common: how tokens are chosen, and how they are sent."""

from typing import Annotated, Literal

from msgspec import Meta, Raw, Struct, field

from gateway_http.protocol.numbers import Float32, Int32, Int64, UInt32
from gateway_http.protocol.raw_json import RawObject, RawObjectOrText

# -1 is llama.cpp's for as many as fit the context.
OutputLimit = Annotated[int, Meta(ge=-1, le=2**32 - 1)]


class SamplingParameters(Struct, kw_only=True):
    """How tokens are chosen, and when generation ends."""

    temperature: Float32 | None = None
    top_p: Float32 | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**32 - 1)] | None = None  # -1 is no limit, as 0
    min_p: Float32 | None = None
    presence_penalty: Float32 | None = None
    frequency_penalty: Float32 | None = None
    repetition_penalty: Float32 | None = None
    repeat_penalty: Float32 | None = None  # llama.cpp's name for it
    max_tokens: OutputLimit | None = None
    min_tokens: UInt32 | None = None
    seed: Int64 | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    stop: str | list[str] | None = None  # "" is none
    stop_token_ids: list[UInt32] | None = None
    logit_bias: dict[UInt32, Float32] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: list[UInt32] | None = None


class TextFormat(Struct, tag_field="type", tag="text", forbid_unknown_fields=True):
    pass


class JsonObjectFormat(Struct, tag_field="type", tag="json_object", forbid_unknown_fields=True):
    pass


class JsonSchema(Struct, forbid_unknown_fields=True, kw_only=True):
    name: str
    description: str | None = None
    schema: RawObject = field(default_factory=Raw)
    strict: bool | None = None


class JsonSchemaFormat(Struct, tag_field="type", tag="json_schema", forbid_unknown_fields=True):
    json_schema: JsonSchema


class StructuredOutputs(Struct, forbid_unknown_fields=True):
    """vLLM's way to ask for a form; one field of it is given."""

    json: RawObjectOrText = field(default_factory=Raw)  # a schema, or a string that holds one
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None


class StreamOptions(Struct, forbid_unknown_fields=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None  # accepted, without effect


class GenerationRequest(SamplingParameters, kw_only=True):
    """The body of a completion, of a chat or of a text, as far as the two are alike."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    prompt_logprobs: UInt32 | None = None
    return_token_ids: bool | None = None
    truncate_prompt_tokens: UInt32 | None = None
    priority: Int32 | None = None
    cache_salt: str | None = None
    # The request's id, where the header X-Request-Id names none. Not `$`: a newline may follow it.
    request_id: Annotated[str, Meta(pattern=r"^[!-~]{1,128}(?![\s\S])")] | None = None
    user: str | None = None  # accepted, without effect

    def drop_input(self) -> None:
        """Free what the model is given, once it has been converted: no response depends on it.

        That is most of a large request, which lasts as long as its response.
        """
        self.response_format = self.structured_outputs = None


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


def own_fields(request: type[GenerationRequest]) -> tuple[str, ...]:
    """The fields that a kind of request adds to what all have."""
    shared = GenerationRequest.__struct_fields__
    return tuple(name for name in request.__struct_fields__ if name not in shared)
