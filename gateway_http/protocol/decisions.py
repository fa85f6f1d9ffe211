"""The request and the response bodies of POST /v1/decisions.

https://github.com/openai/openai-python, `openai/types/decision_create_params.py` and
`openai/types/decision.py` of version 3.57.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from gateway_http.protocol.field_notes import Accepted, http_only, proto_field
from gateway_http.protocol.numbers import Int32
from gateway_http.protocol.raw_json import RawObjectOrArray


class DecisionCacheBreakpoint(Struct, forbid_unknown_fields=True):
    """The end of a prefix that is to be cached."""

    mode: Annotated[Literal["explicit"], http_only("A constant.")]


_Breakpoint = Annotated[
    DecisionCacheBreakpoint | None, http_only("Without effect: every prefix is cached by itself.")
]


class DecisionInputText(Struct, tag_field="type", tag="input_text", forbid_unknown_fields=True):
    """Text of the input."""

    text: Annotated[str, proto_field("ContentPart.text")]
    prompt_cache_breakpoint: _Breakpoint = None


class DecisionInputImage(Struct, tag_field="type", tag="input_image", forbid_unknown_fields=True):
    """An image of the input."""

    image_url: Annotated[str, proto_field("ImageContent.url")]
    detail: Annotated[
        Literal["low", "high", "auto", "original"] | None, proto_field("ImageContent.detail")
    ] = None
    prompt_cache_breakpoint: _Breakpoint = None


class DecisionInputJson(Struct, tag_field="type", tag="input_json", forbid_unknown_fields=True):
    """JSON of the input."""

    data: Annotated[
        RawObjectOrArray,
        proto_field(
            "ContentPart.text",
            description="An object or an array of objects, which becomes text without white space: "
            "at most 32 levels, 10 000 values and 256 KiB.",
        ),
    ]


class DecisionOutputText(Struct, tag_field="type", tag="output_text", forbid_unknown_fields=True):
    """Text of the assistant."""

    text: Annotated[str, proto_field("ContentPart.text")]
    annotations: Accepted = None
    logprobs: Accepted = None


class DecisionRefusal(Struct, tag_field="type", tag="refusal", forbid_unknown_fields=True):
    """A refusal of the assistant."""

    refusal: Annotated[str, proto_field("ChatMessage.refusal")]


ContentPart = (
    DecisionInputText
    | DecisionInputImage
    | DecisionInputJson
    | DecisionOutputText
    | DecisionRefusal
)
QuestionPart = DecisionInputText | DecisionInputImage | DecisionInputJson


class DecisionInputItem(Struct, forbid_unknown_fields=True, kw_only=True):
    """A message, a tool call or the output of one. Each type has fields of its own."""

    type: Annotated[
        Literal[
            "message",
            "function_call",
            "function_call_output",
            "custom_tool_call",
            "custom_tool_call_output",
        ]
        | None,
        http_only("The kind of the item. Absent: a message."),
    ] = None
    id: Accepted = None
    status: Annotated[
        Literal["in_progress", "completed", "incomplete"] | None, http_only("Without effect.")
    ] = None
    role: Annotated[
        Literal["user", "developer", "system", "assistant"] | None,
        proto_field("ChatMessage.role", note="Only a message has it."),
    ] = None
    content: Annotated[
        str | list[ContentPart] | None,
        proto_field(
            "ChatMessage.content",
            note="Each part after the first one begins on a new line. Only a message has it.",
        ),
    ] = None
    phase: Annotated[
        Literal["commentary", "final_answer"] | None,
        http_only("Without effect. Only a message of the assistant has it."),
    ] = None
    call_id: Annotated[
        str | None,
        proto_field(
            "ToolCall.id",
            "ChatMessage.tool_call_id",
            description="The id of the tool call, which is the same in the call and its output.",
        ),
    ] = None
    name: Annotated[
        str | None, proto_field("FunctionCall.name", note="Only a tool call has it.")
    ] = None
    namespace: Annotated[
        str | None, http_only("Put before the name of a tool call, with a dot between them.")
    ] = None
    arguments: Annotated[
        str | None,
        proto_field("FunctionCall.arguments_json", note="Only a function call has it."),
    ] = None
    input: Annotated[
        str | None,
        proto_field(
            "FunctionCall.arguments_json",
            description="The text of a custom tool call: in the prompt it is the argument `input`.",
        ),
    ] = None
    output: Annotated[
        str | list[DecisionInputText | DecisionInputImage] | None,
        proto_field("ChatMessage.content", description="The output of a tool call."),
    ] = None


_Instructions = Annotated[
    str | list[QuestionPart],
    proto_field(
        "DecisionQuestion.instructions",
        note="A list of texts and JSON is joined by line breaks. Images are rejected.",
    ),
]
_Name = Annotated[str | None, proto_field("DecisionQuestion.name")]


class PredicateQuestion(
    Struct, tag_field="type", tag="predicate", forbid_unknown_fields=True, kw_only=True
):
    """A statement about the input. It is answered by the probability that it is true."""

    instructions: _Instructions
    name: _Name = None


class DecisionChoice(Struct, forbid_unknown_fields=True):
    """An option."""

    value: Annotated[str | bool, proto_field("DecisionChoice.text", "DecisionChoice.boolean")]
    description: Annotated[str | None, proto_field("DecisionChoice.description")] = None


class ChoiceQuestion(
    Struct, tag_field="type", tag="choice", forbid_unknown_fields=True, kw_only=True
):
    """A question with options. It is answered by the probability of each."""

    instructions: _Instructions
    choices: Annotated[list[DecisionChoice], proto_field("ChoiceQuestion.choices")]
    name: _Name = None


class DecisionLevel(Struct, forbid_unknown_fields=True):
    """A level of a scale."""

    label: Annotated[str, proto_field("DecisionLevel.label")]
    description: Annotated[str | None, proto_field("DecisionLevel.description")] = None


class ScoreQuestion(
    Struct, tag_field="type", tag="score", forbid_unknown_fields=True, kw_only=True
):
    """A scale on which the input is rated. It is answered by the probability of each level."""

    instructions: _Instructions
    levels: Annotated[list[DecisionLevel], proto_field("ScoreQuestion.levels")]
    name: _Name = None


Question = PredicateQuestion | ChoiceQuestion | ScoreQuestion


class DecisionCacheOptions(Struct, forbid_unknown_fields=True):
    """Options of the prompt cache. They have no effect: every prefix is cached by itself."""

    mode: Annotated[Literal["implicit", "explicit"] | None, http_only("Without effect.")] = None
    ttl: Annotated[Literal["30m"] | None, http_only("Without effect.")] = None


class DecisionRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """Questions about an input."""

    model: Annotated[str, proto_field("CreateDecisionRequest.model")]
    input: Annotated[
        str | Annotated[list[DecisionInputItem], Meta(min_length=1)],
        proto_field(
            "CreateDecisionRequest.messages",
            note="A string is one message of the user. Tool calls belong to the message of the "
            "assistant before them.",
        ),
    ]
    questions: Annotated[
        Annotated[list[Question], Meta(min_length=1)],
        proto_field("CreateDecisionRequest.questions"),
    ]
    prompt_cache_key: Annotated[
        str | None, proto_field("CreateDecisionRequest.prompt_cache_key")
    ] = None
    prompt_cache_options: Annotated[
        DecisionCacheOptions | None, http_only("Options of the prompt cache, without effect.")
    ] = None
    safety_identifier: Annotated[
        str | None, proto_field("CreateDecisionRequest.safety_identifier")
    ] = None
    # Not in OpenAI's API.
    priority: Annotated[Int32 | None, proto_field("CreateDecisionRequest.priority")] = None
    cache_salt: Annotated[str | None, proto_field("CreateDecisionRequest.cache_salt")] = None

    def drop_input(self) -> None:
        """Free the input after it has been converted."""
        self.input = ""
        for question in self.questions:
            question.instructions = ""


# -- The response ----------------------------------------------------------------------------------

_AnswerName = Annotated[str | None, proto_field("DecisionAnswer.name", note="Null without one.")]


class PredicateAnswer(Struct, tag_field="type", tag="predicate", kw_only=True):
    """The result of a predicate."""

    name: _AnswerName
    probability: Annotated[float, proto_field("PredicateAnswer.probability")]


class ChoiceProbability(Struct):
    """The probability of an option."""

    value: Annotated[str | bool, http_only("The value of the option. Over gRPC: its index.")]
    probability: Annotated[float, proto_field("OptionProbability.probability")]


class ChoiceAnswer(Struct, tag_field="type", tag="choice", kw_only=True):
    """The result of a choice."""

    name: _AnswerName
    choice: Annotated[
        str | bool,
        proto_field("ChoiceAnswer.index", description="The value of the most likely option."),
    ]
    confidence: Annotated[float, proto_field("ChoiceAnswer.confidence")]
    probabilities: Annotated[list[ChoiceProbability], proto_field("ChoiceAnswer.probabilities")]


class ScoreProbability(Struct):
    """The probability of a level."""

    value: Annotated[int, http_only("The index of the level. The lowest one is 0.")]
    label: Annotated[str, http_only("The label of the level. Over gRPC: its index.")]
    probability: Annotated[float, proto_field("OptionProbability.probability")]


class ScoreAnswer(Struct, tag_field="type", tag="score", kw_only=True):
    """The result of a score."""

    name: _AnswerName
    score: Annotated[float, proto_field("ScoreAnswer.score")]
    confidence: Annotated[float, proto_field("ScoreAnswer.confidence")]
    probabilities: Annotated[list[ScoreProbability], proto_field("ScoreAnswer.probabilities")]


Answer = PredicateAnswer | ChoiceAnswer | ScoreAnswer


class DecisionInputTokensDetails(Struct):
    """A part of the input's tokens."""

    cached_tokens: Annotated[int, proto_field("Usage.cached_prompt_tokens")]
    cache_write_tokens: Annotated[
        int, http_only("Always 0: every prompt is cached without a charge.")
    ] = 0


class DecisionOutputTokensDetails(Struct):
    """A part of the output's tokens."""

    reasoning_tokens: Annotated[int, http_only("Always 0: the model does not reason first.")] = 0


class DecisionUsage(Struct, kw_only=True):
    """Counts of tokens."""

    input_tokens: Annotated[
        int,
        proto_field(
            "Usage.prompt_tokens",
            description="Tokens of the prompts of all questions. Each has the whole input.",
        ),
    ]
    input_tokens_details: Annotated[DecisionInputTokensDetails, http_only("A part of the input.")]
    output_tokens: Annotated[
        int,
        proto_field(
            "Usage.completion_tokens", description="Tokens of the options that were scored."
        ),
    ]
    output_tokens_details: Annotated[
        DecisionOutputTokensDetails, http_only("A part of the output.")
    ]
    total_tokens: Annotated[int, http_only("The sum of both.")]


class Decision(Struct, kw_only=True):
    """Answers to all questions."""

    model: Annotated[str, proto_field("CreateDecisionResponse.model")]
    answers: Annotated[list[Answer], proto_field("CreateDecisionResponse.answers")]
    usage: Annotated[DecisionUsage, proto_field("CreateDecisionResponse.usage")]
