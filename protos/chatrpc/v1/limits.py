"""The limits of request fields. No other place states them in code.

The service checks requests against this table, and the gateway's OpenAPI document is made from it.
The table is part of this package because neither process may import the other, and because the
limits belong to the API: clients may read them, too. It is Python and not options in the .proto
files, since a custom option would be one more dependency of the code that clients generate.

The comment of a limited field in its .proto file repeats the numbers for readers; a test compares
them. Limits that depend on the model, on an API key or on a setting are not listed here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one field. The default of each is no limit.

    Args:
        minimum: The least number.
        maximum: The greatest number.
        above: A number that the value must exceed.
        min_size: The least number of characters of a string, or of elements of a list or map.
        max_size: The greatest number of these. The default is the size of the largest message.
        element: The limits of each element of a list, or of each value of a map.
        key: The limits of each key of a map.
    """

    minimum: float = -math.inf
    maximum: float = math.inf
    above: float = -math.inf
    min_size: int = 0
    max_size: int = 2**31 - 1
    element: "Limits | None" = None
    key: "Limits | None" = None

    def allow(self, number: float) -> bool:
        """Return True if a number is within the limits. NaN never is."""
        return self.above < number and self.minimum <= number <= self.maximum

    @property
    def range(self) -> str:
        """The limits of a number in words, to follow "must be"."""
        if self.above > -math.inf:
            return f"above {self.above:g} and at most {self.maximum:g}"
        if self.maximum == math.inf:
            return f"at least {self.minimum:g}"
        if self.minimum == -math.inf:
            return f"at most {self.maximum:g}"
        return f"between {self.minimum:g} and {self.maximum:g}"


# The whole of a request id, which the metadata or the header `x-request-id` contains: printable
# ASCII without spaces.
REQUEST_ID_PATTERN = "[!-~]{1,128}"

_SHARE = Limits(minimum=0, maximum=1)
_PENALTY = Limits(minimum=-2, maximum=2)
_ALTERNATIVES = Limits(minimum=0, maximum=20)
_STRINGS = Limits(max_size=64, element=Limits(min_size=1, max_size=256))
_IDENTIFIER = Limits(max_size=512)
_AT_LEAST_ONE = Limits(minimum=1)
_NOT_EMPTY = Limits(min_size=1)
_OPTION = Limits(min_size=1, max_size=256)
_OPTIONS = Limits(min_size=2, max_size=255)

# By message and field.
LIMITS: Mapping[str, Limits] = {
    "SamplingParams.temperature": Limits(minimum=0, maximum=2),
    "SamplingParams.top_p": _SHARE,
    "SamplingParams.min_p": _SHARE,
    "SamplingParams.presence_penalty": _PENALTY,
    "SamplingParams.frequency_penalty": _PENALTY,
    # A logit times more than this could leave the range of a float.
    "SamplingParams.repetition_penalty": Limits(above=0, maximum=1000),
    "SamplingParams.max_completion_tokens": _AT_LEAST_ONE,  # 0 in a completion with `echo`
    "SamplingParams.n": Limits(minimum=1, maximum=128),
    "SamplingParams.stop": _STRINGS,
    "SamplingParams.stop_token_ids": Limits(max_size=1024),
    "SamplingParams.logit_bias": Limits(max_size=1024, element=Limits(minimum=-100, maximum=100)),
    "SamplingParams.bad_words": _STRINGS,
    "PromptOptions.chat_template_kwargs_json": Limits(max_size=65_536),
    "PromptOptions.truncate_prompt_tokens": _AT_LEAST_ONE,
    "ChatCompletionParams.messages": Limits(min_size=1),
    "ChatCompletionParams.tools": Limits(max_size=128),
    "ChatCompletionParams.top_logprobs": _ALTERNATIVES,
    "ChatCompletionParams.prompt_logprobs": _ALTERNATIVES,
    "ChatCompletionParams.cache_salt": _IDENTIFIER,
    "ChatCompletionParams.user": _IDENTIFIER,
    "ChatCompletionParams.safety_identifier": _IDENTIFIER,
    "ChatCompletionParams.metadata": Limits(
        max_size=16, key=Limits(max_size=64), element=Limits(max_size=512)
    ),
    "ChatCompletionParams.prompt_cache_key": _IDENTIFIER,
    "ChatCompletionParams.service_tier": _IDENTIFIER,
    "FunctionDefinition.name": Limits(min_size=1, max_size=64),
    "AllowedTools.function_names": Limits(min_size=1, max_size=128),
    "CompletionParams.prompts": Limits(min_size=1, max_size=128),
    "CompletionParams.logprobs": _ALTERNATIVES,
    "CompletionParams.prompt_logprobs": _ALTERNATIVES,
    "CompletionParams.truncate_prompt_tokens": _AT_LEAST_ONE,
    "CompletionParams.cache_salt": _IDENTIFIER,
    "CompletionParams.user": _IDENTIFIER,
    "TokenIds.ids": Limits(min_size=1),
    "DetokenizeRequest.token_ids": Limits(max_size=100_000),
    "CreateEmbeddingsRequest.dimensions": _AT_LEAST_ONE,
    "CreateEmbeddingsRequest.user": _IDENTIFIER,
    "CreateEmbeddingsRequest.prompt_name": Limits(max_size=64),
    "Truncation.max_tokens": _AT_LEAST_ONE,
    "TextInputs.texts": Limits(min_size=1, max_size=2048, element=Limits(min_size=1)),
    "TokenInputs.token_ids": Limits(min_size=1, max_size=2048),
    "TextPairs.pairs": Limits(min_size=1, max_size=2048),
    "TextPair.query": Limits(min_size=1),
    "TextPair.document": Limits(min_size=1),
    "ClassifyRequest.user": _IDENTIFIER,
    "ScoreRequest.pairs": Limits(min_size=1, max_size=2048),
    "ScoreRequest.user": _IDENTIFIER,
    "RerankRequest.query": Limits(min_size=1),
    "RerankRequest.documents": Limits(min_size=1, max_size=2048, element=Limits(min_size=1)),
    "RerankRequest.top_n": _AT_LEAST_ONE,
    "RerankRequest.max_tokens_per_document": _AT_LEAST_ONE,
    "RerankRequest.user": _IDENTIFIER,
    "CreateDecisionRequest.messages": Limits(min_size=1),
    "CreateDecisionRequest.questions": Limits(min_size=1, max_size=400),
    "CreateDecisionRequest.cache_salt": _IDENTIFIER,
    "CreateDecisionRequest.safety_identifier": _IDENTIFIER,
    "CreateDecisionRequest.prompt_cache_key": _IDENTIFIER,
    "DecisionQuestion.name": _IDENTIFIER,
    "DecisionQuestion.instructions": _NOT_EMPTY,
    "ChoiceQuestion.choices": _OPTIONS,
    "DecisionChoice.text": _OPTION,
    "ScoreQuestion.levels": _OPTIONS,
    "DecisionLevel.label": _OPTION,
    "CallerInfo.name": Limits(min_size=1, max_size=128),
    "CallerInfo.weight": Limits(minimum=1, maximum=100),
    "CallerInfo.cache_namespace": Limits(max_size=128),
}
