import pytest

from service.domain.engine_settings import EngineSettings
from service.engine.limits import EngineLimits


def test_defaults_depend_on_the_device() -> None:
    assert EngineLimits.of(EngineSettings(), "cpu") == EngineLimits(32, 512, 200, 32, 8)
    assert EngineLimits.of(EngineSettings(), "cuda") == EngineLimits(256, 2048, 200, 256, 0)


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_options_that_are_set_replace_the_defaults(device_type: str) -> None:
    settings = EngineSettings(
        max_num_seqs=3,
        max_num_batched_tokens=7,
        max_step_ms=50,
        block_size=16,
        num_speculative_tokens=5,
    )
    assert EngineLimits.of(settings, device_type) == EngineLimits(3, 7, 50, 16, 5)


def test_drafts_are_disabled_by_a_length_of_zero() -> None:
    limits = EngineLimits.of(EngineSettings(num_speculative_tokens=0), "cpu")
    assert limits.num_speculative_tokens == 0


def test_default_of_tokens_is_enough_for_the_sequences_that_are_set() -> None:
    limits = EngineLimits.of(EngineSettings(max_num_seqs=1000), "cpu")
    assert (limits.max_num_seqs, limits.max_num_batched_tokens) == (1000, 1000)


def test_default_of_sequences_is_at_most_the_tokens_that_are_set() -> None:
    limits = EngineLimits.of(EngineSettings(max_num_batched_tokens=5), "cuda")
    assert (limits.max_num_seqs, limits.max_num_batched_tokens) == (5, 5)
