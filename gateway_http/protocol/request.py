"""The body of POST /v1/chat/completions.

Every optional field may be null, which is the same as absent; none has a default here. The types
hold what the wire can carry: whether a value makes sense is for the service to say. A field that is
not declared is refused by its name.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Int32 = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
UInt32 = Annotated[int, Meta(ge=0, le=2**32 - 1)]
# The largest finite number of 32 bits: the wire would turn a larger one into infinity.
Float32 = Annotated[float, Meta(ge=-3.4028234663852886e38, le=3.4028234663852886e38)]

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class Part(Struct, tag_field="type", forbid_unknown_fields=True, kw_only=True):
    """One piece of a message's content."""

    prompt_cache_breakpoint: Any = None  # accepted, without effect


class TextPart(Part, tag="text"):
    text: str


class RefusalPart(Part, tag="refusal"):
    refusal: str


class ImageUrl(Struct, forbid_unknown_fields=True):
    url: str
    detail: str | None = None


class ImagePart(Part, tag="image_url"):
    image_url: ImageUrl


class InputAudio(Struct, forbid_unknown_fields=True):
    data: bytes  # base64 in JSON
    format: str


class AudioPart(Part, tag="input_audio"):
    input_audio: InputAudio


class InputFile(Struct, forbid_unknown_fields=True):
    file_id: str | None = None
    file_data: str | None = None  # base64, alone or in a data: URL
    filename: str | None = None


class FilePart(Part, tag="file"):
    file: InputFile


ContentPart = TextPart | RefusalPart | ImagePart | AudioPart | FilePart


class FunctionCall(Struct, forbid_unknown_fields=True):
    name: str
    arguments: str | dict[str, Any]  # JSON as text; some clients send it unwrapped


class ToolCall(Struct, forbid_unknown_fields=True, kw_only=True):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall
    index: UInt32 | None = None  # left over where a client echoes what was streamed to it


class Message(Struct, forbid_unknown_fields=True, kw_only=True):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    # Two names for what a reasoning model thought; clients echo either.
    reasoning_content: str | None = None
    reasoning: str | None = None
    # What OpenAI's own answers carry beside these, when a client sends one back whole.
    annotations: Any = None  # accepted, without effect
    audio: Any = None
    function_call: Any = None


class FunctionDefinition(Struct, forbid_unknown_fields=True):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(Struct, tag_field="type", tag="function", forbid_unknown_fields=True):
    function: FunctionDefinition


class FunctionName(Struct, forbid_unknown_fields=True):
    name: str


class NamedTool(Struct, tag_field="type", tag="function", forbid_unknown_fields=True):
    function: FunctionName


class AllowedTools(Struct, forbid_unknown_fields=True):
    mode: Literal["auto", "required"]
    tools: list[NamedTool]


class AllowedToolsChoice(Struct, tag_field="type", tag="allowed_tools", forbid_unknown_fields=True):
    allowed_tools: AllowedTools


ToolChoice = Literal["none", "auto", "required"] | NamedTool | AllowedToolsChoice


class TextFormat(Struct, tag_field="type", tag="text", forbid_unknown_fields=True):
    pass


class JsonObjectFormat(Struct, tag_field="type", tag="json_object", forbid_unknown_fields=True):
    pass


class JsonSchema(Struct, forbid_unknown_fields=True, kw_only=True):
    name: str
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class JsonSchemaFormat(Struct, tag_field="type", tag="json_schema", forbid_unknown_fields=True):
    json_schema: JsonSchema


class StructuredOutputs(Struct, forbid_unknown_fields=True):
    """vLLM's way to ask for a form; one field of it is given."""

    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None


class StreamOptions(Struct, forbid_unknown_fields=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None  # accepted, without effect


class AudioOutput(Struct, forbid_unknown_fields=True):
    voice: str
    format: str


class Prediction(Struct, forbid_unknown_fields=True):
    type: Literal["content"]
    content: str | list[ContentPart]


class UnservedParameters(Struct, kw_only=True):
    """Known from OpenAI or from other servers, and refused by name unless null."""

    web_search_options: Any = None
    moderation: Any = None
    functions: Any = None
    function_call: Any = None
    chat_template: Any = None
    documents: Any = None
    add_special_tokens: Any = None
    spaces_between_special_tokens: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    echo: Any = None
    logprob_token_ids: Any = None
    return_tokens_as_token_ids: Any = None
    request_id: Any = None
    session_id: Any = None
    stream_interval: Any = None
    thinking_token_budget: Any = None
    include_reasoning: Any = None
    repetition_detection: Any = None
    vllm_xargs: Any = None
    use_beam_search: Any = None


class ChatCompletionRequest(UnservedParameters, forbid_unknown_fields=True, kw_only=True):
    model: str
    messages: Annotated[list[Message], Meta(min_length=1)]

    # How tokens are chosen, and when generation ends.
    temperature: Float32 | None = None
    top_p: Float32 | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**32 - 1)] | None = None  # -1 is no limit, as 0
    min_p: Float32 | None = None
    presence_penalty: Float32 | None = None
    frequency_penalty: Float32 | None = None
    repetition_penalty: Float32 | None = None
    repeat_penalty: Float32 | None = None  # llama.cpp's name for it
    max_completion_tokens: UInt32 | None = None
    max_tokens: UInt32 | None = None
    min_tokens: UInt32 | None = None
    seed: Int64 | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[UInt32] | None = None
    logit_bias: dict[UInt32, Float32] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: list[UInt32] | None = None

    # What is answered, and how.
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    logprobs: bool | None = None
    top_logprobs: UInt32 | None = None
    prompt_logprobs: UInt32 | None = None
    return_token_ids: bool | None = None
    reasoning_effort: Effort | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    modalities: list[Literal["text", "audio"]] | None = None
    audio: AudioOutput | None = None
    prediction: Prediction | None = None

    # How the conversation becomes a prompt, and when its turn comes.
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    truncate_prompt_tokens: UInt32 | None = None
    priority: Int32 | None = None
    cache_salt: str | None = None

    # The caller's bookkeeping, accepted without effect on the answer.
    user: str | None = None
    safety_identifier: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    prompt_cache_key: str | None = None
    service_tier: str | None = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
