"""The body of POST /v1/completions, and what a client gets back."""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from gateway_http.protocol.numbers import UInt32
from gateway_http.protocol.response import FinishReason, PromptLogprobs, Usage
from gateway_http.protocol.sampling import GenerationRequest, own_fields

# Of one kind each, which a type cannot say.
Prompts = Annotated[list[str | UInt32 | list[UInt32]], Meta(min_length=1)]


class UnsupportedParameters(GenerationRequest, kw_only=True):
    """Known from OpenAI or from other servers, and refused by name unless null."""

    prompt_embeds: Any = None
    use_beam_search: Any = None
    length_penalty: Any = None
    spaces_between_special_tokens: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    logprob_token_ids: Any = None
    return_tokens_as_token_ids: Any = None
    vllm_xargs: Any = None


UNSUPPORTED = own_fields(UnsupportedParameters)


class CompletionRequest(UnsupportedParameters, forbid_unknown_fields=True, kw_only=True):
    # A text, texts, the tokens of one prompt, or those of several.
    prompt: str | Prompts
    echo: bool | None = None
    logprobs: UInt32 | None = None
    suffix: str | None = None
    best_of: UInt32 | None = None  # no more than `n`
    add_special_tokens: bool | None = None

    def drop_input(self) -> None:
        super().drop_input()
        self.prompt = ""


class CompletionLogprobs(Struct):
    """OpenAI's older form: a list for each thing, all of one length."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Struct, kw_only=True):
    index: int
    text: str
    finish_reason: FinishReason | None
    logprobs: CompletionLogprobs | None
    stop_reason: str | int | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class Completion(Struct, kw_only=True):
    """A whole completion, or a piece of one in a stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    # In a stream: null on every piece but the last where the client asked for usage; left out where
    # it did not.
    usage: Usage | UnsetType | None = UNSET
    system_fingerprint: str | UnsetType = UNSET
