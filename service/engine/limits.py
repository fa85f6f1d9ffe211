"""The limits of a step and of drafts, with defaults that depend on the device. No torch."""

from dataclasses import dataclass, replace

from service.domain.engine_settings import (
    DEFAULT_MAX_STEP_MS,
    DEFAULT_SPECULATIVE_TOKENS,
    EngineSettings,
)


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """The options of `EngineSettings` whose defaults depend on the device.

    The fields have the names and meanings of the options.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_step_ms: int
    block_size: int
    num_speculative_tokens: int

    @classmethod
    def of(cls, settings: EngineSettings, device_type: str) -> "EngineLimits":
        """Return the limits for a device: the options that are set, and defaults for the others.

        If only one of `max_num_seqs` and `max_num_batched_tokens` is set, the default of the other
        is changed where needed, so that a step has a token for each sequence.

        Args:
            device_type: `cpu` or `cuda`.
        """
        defaults = _DEFAULTS[device_type]
        if settings.max_num_seqs is not None:
            num_tokens = max(settings.max_num_seqs, defaults.max_num_batched_tokens)
            defaults = replace(defaults, max_num_batched_tokens=num_tokens)
        if settings.max_num_batched_tokens is not None:
            num_seqs = min(settings.max_num_batched_tokens, defaults.max_num_seqs)
            defaults = replace(defaults, max_num_seqs=num_seqs)
        return cls(
            _chosen(settings.max_num_seqs, defaults.max_num_seqs),
            _chosen(settings.max_num_batched_tokens, defaults.max_num_batched_tokens),
            _chosen(settings.max_step_ms, defaults.max_step_ms),
            _chosen(settings.block_size, defaults.block_size),
            _chosen(settings.num_speculative_tokens, defaults.num_speculative_tokens),
        )


_DEFAULTS = {
    "cpu": EngineLimits(
        max_num_seqs=32,
        max_num_batched_tokens=512,
        max_step_ms=DEFAULT_MAX_STEP_MS,
        block_size=32,
        num_speculative_tokens=DEFAULT_SPECULATIVE_TOKENS,
    ),
    # vLLM's defaults for sequences and tokens on a GPU with less than 70 GiB. Larger ones have more
    # there. Here the scheduler takes 4 ms of Python for 256 sequences, and a step of 2048 tokens is
    # limited by arithmetic already, so more tokens only delay running streams. Without CUDA graphs
    # a draft makes a step longer than its accepted tokens save.
    "cuda": EngineLimits(
        max_num_seqs=256,
        max_num_batched_tokens=2048,
        max_step_ms=DEFAULT_MAX_STEP_MS,
        block_size=256,  # the smallest that `VarlenAttention` supports
        num_speculative_tokens=0,
    ),
}


def _chosen(option: int | None, default: int) -> int:
    return default if option is None else option
