"""A text completion request."""

from dataclasses import dataclass

from service.domain.chat import ResponseFormat
from service.domain.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A checked text completion request, with the model's defaults filled in.

    Attributes:
        prompts: The prompts. Each is a text or a tuple of token ids.
        sampling: Sampling parameters. If `max_tokens` is 0, the prompts are scored and nothing is
            generated.
        n: Number of choices for each prompt.
        is_echoed: True if the text of each choice begins with its prompt.
        num_logprobs: See `service.domain.engine.Request`.
        num_prompt_logprobs: See `service.domain.engine.Request`.
        adds_special_tokens: True if text prompts are encoded with the tokenizer's special tokens.
        truncate_prompt_tokens: Number of tokens to keep of each prompt's end; None keeps all.
        prompts_field: The field of the request that has the prompts, for error messages.
    """

    prompts: tuple[str | tuple[int, ...], ...]
    sampling: SamplingParams
    n: int
    is_echoed: bool
    num_logprobs: int | None
    num_prompt_logprobs: int | None
    returns_token_ids: bool
    adds_special_tokens: bool
    truncate_prompt_tokens: int | None
    cache_salt: str
    response_format: ResponseFormat | None
    prompts_field: str = "prompts"
