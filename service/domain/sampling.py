"""Sampling parameters."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Parameters of the choice of tokens and of the end of generation.

    The values here are OpenAI's defaults and the only place where a default is written; the model's
    `generation_config` replaces them at start, a request's own fields replace those.
    """

    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: no limit
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int | None = None  # None: all that the context leaves
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # by token id
    min_tokens: int = 0
    allowed_token_ids: frozenset[int] | None = None  # None: all
    bad_words: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True

    @property
    def is_greedy(self) -> bool:
        """True if only the most likely token can be chosen."""
        # Logits divided by a temperature below 1e-5 would overflow.
        return self.temperature < 1e-5 or self.top_k == 1 or self.top_p == 0.0
