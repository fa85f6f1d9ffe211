"""The body of POST /v1/chat/completions.

Every optional field may be null, which is the same as absent; none has a default here. The types
hold what the wire can carry: whether a value makes sense is for the service to say. A field that is
not declared is refused by its name.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Raw, Struct, field

from gateway_http.protocol.numbers import UInt32
from gateway_http.protocol.raw_json import RawObject
from gateway_http.protocol.sampling import Effort, GenerationRequest, OutputLimit, own_fields


class Part(Struct, tag_field="type", forbid_unknown_fields=True, kw_only=True):
    """One piece of a message's content."""

    prompt_cache_breakpoint: Any = None  # accepted, without effect
    cache_control: Any = None  # Anthropic's, which clients of several servers send; without effect


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
    parsed_arguments: Any = None  # what `parse()` of OpenAI's SDK adds; without effect


class ToolCall(Struct, forbid_unknown_fields=True, kw_only=True):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall
    index: UInt32 | None = None  # left over where a client echoes what was streamed to it
    extra_content: Any = None  # what Google's servers add; without effect
    cache_control: Any = None


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
    # What clients add to a message that they keep; without effect. `parsed` is of OpenAI's SDK.
    id: str | None = None
    parsed: Any = None
    cache_control: Any = None


class FunctionDefinition(Struct, forbid_unknown_fields=True):
    name: str
    description: str | None = None
    parameters: RawObject = field(default_factory=Raw)
    strict: bool | None = None
    cache_control: Any = None  # accepted, without effect


class FunctionTool(Struct, tag_field="type", tag="function", forbid_unknown_fields=True):
    function: FunctionDefinition
    cache_control: Any = None  # accepted, without effect


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


class AudioOutput(Struct, forbid_unknown_fields=True):
    voice: str
    format: str


class Prediction(Struct, forbid_unknown_fields=True):
    type: Literal["content"]
    content: str | list[ContentPart]


class UnsupportedParameters(GenerationRequest, kw_only=True):
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
    session_id: Any = None
    stream_interval: Any = None
    thinking_token_budget: Any = None
    include_reasoning: Any = None
    repetition_detection: Any = None
    vllm_xargs: Any = None
    use_beam_search: Any = None


UNSUPPORTED = own_fields(UnsupportedParameters)


class ChatCompletionRequest(UnsupportedParameters, forbid_unknown_fields=True, kw_only=True):
    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: OutputLimit | None = None

    # What is answered, and how.
    tools: list[FunctionTool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    logprobs: bool | None = None
    top_logprobs: UInt32 | None = None
    reasoning_effort: Effort | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    modalities: list[Literal["text", "audio"]] | None = None
    audio: AudioOutput | None = None
    prediction: Prediction | None = None

    # How the conversation becomes a prompt.
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    # The caller's bookkeeping, accepted without effect on the answer.
    safety_identifier: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    prompt_cache_key: str | None = None
    service_tier: str | None = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None

    def drop_input(self) -> None:
        super().drop_input()
        self.messages, self.tools, self.chat_template_kwargs = [], None, None
