"""Sampling parameters."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """The parameters that choose the tokens and that end the generation.

    The defaults here are OpenAI's. They are written nowhere else. At the start of the service, the
    model's `generation_config` replaces them. The fields that a request sets replace both.
    """

    temperature: float = 1.0  # 0 to 2; 0 means greedy sampling
    top_p: float = 1.0
    top_k: int = 0  # 0 means no limit
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int | None = None  # None means the rest of the context
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # keyed by token id
    min_tokens: int = 0
    allowed_token_ids: frozenset[int] | None = None  # None means all
    bad_words: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    # Names of the fields that the request sets. The others have the model's defaults.
    given: frozenset[str] = field(default=frozenset(), compare=False)

    @property
    def is_greedy(self) -> bool:
        """True if only the most likely token can be chosen."""
        # Logits divided by a temperature below 1e-5 would overflow.
        return self.temperature < 1e-5 or self.top_k == 1 or self.top_p == 0.0
