"""The body of POST /v1/chat/completions.

Every optional field may be null, which is the same as absent. No field has a default here. The
types accept every value that the protos can carry, and the service checks whether it is valid. A
field that is not declared is rejected with an error that names it.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Raw, Struct, field

from gateway_http.protocol.field_notes import Accepted, Rejected, http_only, note, proto_field
from gateway_http.protocol.numbers import UInt32
from gateway_http.protocol.raw_json import RawObject
from gateway_http.protocol.sampling import (
    ChatTemplateKwargs,
    ForeignParameters,
    GenerationRequest,
    OutputLimit,
    ReasoningEffort,
)
from gateway_http.protocol.struct_fields import own_fields


class Part(Struct, tag_field="type", forbid_unknown_fields=True, kw_only=True):
    """A part of a message's content."""

    prompt_cache_breakpoint: Accepted = None
    cache_control: Accepted = None  # Anthropic's, which clients of several servers send


class TextPart(Part, tag="text"):
    """Text in a message."""

    text: str


class RefusalPart(Part, tag="refusal"):
    """The text by which the model declined."""

    refusal: str


class ImageUrl(Struct, forbid_unknown_fields=True):
    """The source of an image."""

    url: str
    detail: str | None = None


class ImagePart(Part, tag="image_url"):
    """An image in a message."""

    image_url: Annotated[ImageUrl, proto_field("ContentPart.image")]


class InputAudio(Struct, forbid_unknown_fields=True):
    """Audio as base64."""

    data: Annotated[
        bytes, proto_field("AudioContent.data", description="The bytes of the audio in base64.")
    ]
    format: str


class AudioPart(Part, tag="input_audio"):
    """Audio in a message."""

    input_audio: Annotated[InputAudio, proto_field("ContentPart.audio")]


class InputFile(Struct, forbid_unknown_fields=True):
    """A file, by its id or as base64."""

    file_id: str | None = None
    file_data: Annotated[
        str | None,
        proto_field(
            "FileContent.data", description="The bytes of the file in base64, or in a `data:` URL."
        ),
    ] = None
    filename: str | None = None


class FilePart(Part, tag="file"):
    """A file in a message."""

    file: InputFile


ContentPart = TextPart | RefusalPart | ImagePart | AudioPart | FilePart


class FunctionCall(Struct, forbid_unknown_fields=True):
    """The function of a tool call, with its arguments."""

    name: str
    arguments: Annotated[
        str | dict[str, Any],
        proto_field(
            "FunctionCall.arguments_json",
            description="The arguments: a JSON object as text. The object itself is accepted, too.",
        ),
    ]
    parsed_arguments: Accepted = None  # `parse()` of OpenAI's SDK adds it


class ToolCall(Struct, forbid_unknown_fields=True, kw_only=True):
    """A tool call that the model made."""

    id: str
    type: Annotated[
        Literal["function"], proto_field("ToolCall.function", description="Always `function`.")
    ] = "function"
    function: FunctionCall
    index: Annotated[
        UInt32 | None,
        http_only("Accepted, without effect, since streams have it: the order of calls counts."),
    ] = None
    extra_content: Accepted = None  # Google's servers add it
    cache_control: Accepted = None


class Message(Struct, forbid_unknown_fields=True, kw_only=True):
    """A message of a conversation. Messages that the API returned can be sent as they are."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Annotated[str | list[ContentPart] | None, note("A string is one part of text.")] = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: Annotated[
        str | None,
        proto_field("ChatMessage.reasoning_content", note="Another name of `reasoning_content`."),
    ] = None
    # OpenAI's own responses have them.
    annotations: Accepted = None
    audio: Annotated[Any, http_only("Rejected unless it is null.")] = None
    function_call: Annotated[Any, http_only("Rejected unless it is null.")] = None
    # Clients add them to messages that they keep. `parsed` is from OpenAI's SDK, and the last ones
    # from OpenRouter, Google's servers and LiteLLM.
    id: Accepted = None
    parsed: Accepted = None
    reasoning_details: Accepted = None
    extra_content: Accepted = None
    thinking_blocks: Accepted = None
    provider_specific_fields: Accepted = None
    cache_control: Accepted = None


class FunctionDefinition(Struct, forbid_unknown_fields=True):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: Annotated[
        RawObject,
        proto_field(
            "FunctionDefinition.parameters_json_schema",
            description="A JSON Schema for the arguments object. Absent: no parameters.",
        ),
    ] = field(default_factory=Raw)
    strict: bool | None = None
    cache_control: Accepted = None


class FunctionTool(Struct, tag_field="type", tag="function", forbid_unknown_fields=True):
    """A tool that is a function."""

    function: FunctionDefinition
    cache_control: Accepted = None


class FunctionName(Struct, forbid_unknown_fields=True):
    """The name of a function that the model must call."""

    name: Annotated[
        str, proto_field("ToolChoice.function_name", description="The name of the function.")
    ]


class NamedTool(Struct, tag_field="type", tag="function", forbid_unknown_fields=True):
    """The one function that the model must call."""

    function: Annotated[
        FunctionName, proto_field("ToolChoice.function_name", description="The function.")
    ]


class AllowedTools(Struct, forbid_unknown_fields=True):
    """A choice among some tools of the request."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], proto_field("AllowedTools.function_names")]


class AllowedToolsChoice(Struct, tag_field="type", tag="allowed_tools", forbid_unknown_fields=True):
    """A tool choice among some tools of the request."""

    allowed_tools: AllowedTools


ToolChoice = Literal["none", "auto", "required"] | NamedTool | AllowedToolsChoice


class AudioOutput(Struct, forbid_unknown_fields=True):
    """The voice and the format of audio output."""

    voice: str
    format: str


class Prediction(Struct, forbid_unknown_fields=True):
    """Text that the output is expected to repeat."""

    type: Annotated[Literal["content"], http_only("Always `content`.")]
    content: Annotated[str | list[ContentPart], note("A string is one part of text.")]


class Reasoning(Struct, forbid_unknown_fields=True):
    """The reasoning wanted, in the form of routers such as OpenRouter."""

    effort: Annotated[
        ReasoningEffort | None, proto_field("ChatCompletionParams.reasoning_effort")
    ] = None
    enabled: Annotated[
        bool | None, http_only("False is the same as the effort `none`. True has no effect.")
    ] = None
    exclude: Annotated[
        bool | None, http_only("If true, the reasoning is not returned, as `include_reasoning`.")
    ] = None
    max_tokens: Rejected = None
    summary: Accepted = None


class UnsupportedParameters(ForeignParameters, kw_only=True):
    """Parameters of OpenAI or of other servers that are rejected unless they are null."""

    web_search_options: Rejected = None
    moderation: Rejected = None
    functions: Rejected = None
    function_call: Rejected = None
    chat_template: Rejected = None
    documents: Rejected = None
    add_special_tokens: Rejected = None
    echo: Rejected = None
    session_id: Rejected = None
    stream_interval: Rejected = None
    thinking_token_budget: Rejected = None
    repetition_detection: Rejected = None
    media_io_kwargs: Rejected = None
    mm_processor_kwargs: Rejected = None


UNSUPPORTED = own_fields(UnsupportedParameters, GenerationRequest)


class ChatCompletionRequest(UnsupportedParameters, forbid_unknown_fields=True, kw_only=True):
    """The parameters of a chat completion."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Annotated[
        OutputLimit | None, note("-1 is all that the context leaves.")
    ] = None

    # The output and its form.
    tools: list[FunctionTool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    logprobs: bool | None = None
    top_logprobs: UInt32 | None = None
    reasoning_effort: ReasoningEffort | None = None
    reasoning: Annotated[
        Reasoning | None, http_only("The effort, and whether the reasoning is returned.")
    ] = None
    include_reasoning: Annotated[
        bool | None,
        http_only(
            "If false, the reasoning is not returned. It is generated and counted all the same. "
            "Absent: true."
        ),
    ] = None
    verbosity: Literal["low", "medium", "high"] | None = None
    modalities: list[Literal["text", "audio"]] | None = None
    audio: AudioOutput | None = None
    prediction: Prediction | None = None

    # Options for making a prompt from the conversation.
    chat_template_kwargs: ChatTemplateKwargs = None
    enable_thinking: Annotated[
        bool | None,
        proto_field(
            "PromptOptions.chat_template_kwargs_json",
            description="The variable `enable_thinking` of the model's chat template, unless "
            "`chat_template_kwargs` has it.",
        ),
    ] = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    # Accepted, without effect on the output.
    safety_identifier: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    prompt_cache_key: str | None = None
    service_tier: str | None = None
    prompt_cache_options: Accepted = None
    prompt_cache_retention: Accepted = None

    @property
    def returns_reasoning(self) -> bool:
        """False if the reasoning is left out of the response."""
        is_excluded = self.reasoning is not None and self.reasoning.exclude
        return self.include_reasoning is not False and not is_excluded

    def drop_input(self) -> None:
        super().drop_input()
        self.messages, self.tools, self.chat_template_kwargs = [], None, None
