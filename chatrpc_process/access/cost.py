"""The maximum cost of a request, before its prompt has been tokenized.

`params` are `chatrpc.v1.ChatCompletionParams` or `chatrpc.v1.CompletionParams`; this package
does not import the protos.
"""

from dataclasses import dataclass
from typing import Any

from chatrpc_process.access.keys import Key

# The default output limit of a text completion, which `CompletionParams.sampling` documents. A chat
# completion has no default.
COMPLETION_MAX_TOKENS = 16

# Number of tokens that a chat template may add, such as role markers, a default system prompt and
# the introduction of tools.
_TEMPLATE_TOKENS = 64
# Texts in natural languages, code and JSON have 1 to 6 bytes per token.
_MOST_BYTES_PER_TOKEN = 8

# The default of `default_max_tokens` is `tokens_per_minute` divided by this. It is short enough for
# several requests at once, and long enough for most responses.
_CONCURRENCY = 32
_LEAST_DEFAULT, _MOST_DEFAULT = 1024, 4096


@dataclass(frozen=True, slots=True)
class Cost:
    """The maximum cost of one request.

    Attributes:
        num_sequences: Number of generated sequences: prompts times `n`.
        num_prompt_tokens: Maximum number of tokens of its prompts.
        num_output_tokens: Maximum number of tokens of all of its sequences.
        least_tokens: Number of prompt and output tokens if the tokens of the prompt are long and
            the output reaches its limit.
        sequences_field: The field of the parameters that a client can lower for fewer sequences.
        tokens_field: The field of the parameters that a client can lower for fewer tokens.
    """

    num_sequences: int = 1
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    least_tokens: int = 0
    sequences_field: str = ""
    tokens_field: str = ""

    @property
    def num_tokens(self) -> int:
        """The maximum number of prompt and output tokens together."""
        return self.num_prompt_tokens + self.num_output_tokens


def default_output_limit(params: Any, key: Key) -> int | None:
    """Return the output limit to set for a request, or None if none is to be set.

    A chat completion without a limit gets one if the key has a token limit. Otherwise only the
    context length would limit its cost. Reserving that many tokens for each request would reject
    clients that stay far below their limit. All choices together get at most the tokens that the
    key may use in a minute.
    """
    limit = key.tokens_per_minute
    is_limited = params.sampling.HasField("max_completion_tokens") or hasattr(params, "prompts")
    if limit is None or is_limited:
        return None
    default = key.default_max_tokens
    if default is None:
        default = min(max(limit // _CONCURRENCY, _LEAST_DEFAULT), _MOST_DEFAULT)
    return max(1, min(default, limit // _num_sequences(params)))


def cost_of(params: Any, num_bytes: int, output_limit: int | None = None) -> Cost:
    """Return the maximum cost of a generation.

    A token has at least one byte, so the size of a prompt is an upper bound of its tokens. It is
    about four times too high for English. This restricts how many requests may begin at once, but
    not their rate: the excess of a reservation is returned to the limit at the end. With a lower
    estimate, many requests at once could exceed the limit.

    Args:
        params: The generation's parameters.
        num_bytes: The size of the request, as protobuf or JSON, without compression.
        output_limit: The output limit of one sequence if `params` have none. None means the default
            of a text completion.
    """
    num_sequences, has_prompts = _num_sequences(params), hasattr(params, "prompts")
    sampling = params.sampling
    if output_limit is not None:
        sampling = type(params.sampling)(max_completion_tokens=output_limit)
        sampling.MergeFrom(params.sampling)
    max_tokens = COMPLETION_MAX_TOKENS if has_prompts else 0
    if sampling.HasField("max_completion_tokens"):
        max_tokens = sampling.max_completion_tokens
    num_output_tokens = num_sequences * max_tokens
    # Schemas and biases can be long, but are not in the prompt.
    num_bytes = max(0, num_bytes - params.response_format.ByteSize() - sampling.ByteSize())
    least_prompt_tokens = num_bytes // _MOST_BYTES_PER_TOKEN
    prompt_field = "prompts" if has_prompts else "messages"
    return Cost(
        num_sequences,
        num_bytes + _TEMPLATE_TOKENS,
        num_output_tokens,
        least_prompt_tokens + num_output_tokens,
        sequences_field="sampling.n" if sampling.n > 1 else prompt_field,
        tokens_field="sampling.max_completion_tokens"
        if num_output_tokens > least_prompt_tokens
        else prompt_field,
    )


def cost_of_input(num_bytes: int, field: str) -> Cost:
    """Return the maximum cost of a request whose input is computed and that generates nothing.

    Args:
        num_bytes: The size of the request, as protobuf or JSON, without compression.
        field: The field with the input.
    """
    return Cost(
        num_prompt_tokens=num_bytes,
        least_tokens=num_bytes // _MOST_BYTES_PER_TOKEN,
        sequences_field=field,
        tokens_field=field,
    )


def _num_sequences(params: Any) -> int:
    """Return prompts times `n`. An invalid number counts as 1; it is rejected later."""
    num_prompts = len(params.prompts) if hasattr(params, "prompts") else 1
    return max(1, num_prompts) * max(1, int(params.sampling.n))
