"""The shares of the machine's limits, on a machine and a model with round numbers."""

import pytest

from bench.results import Limits, ModelFacts, ServerFacts
from bench.roofline import Roofline, Shares

LIMITS = Limits(read_gb_s=10.0, tops={"int8": 1.0, "bf16": 0.5})
MODEL = ModelFacts("", "", 1_200_000_000, 10**9, 10**8, 1000, 0)
FIGURES = {
    "num_prompt_tokens": 100.0,
    "num_cached_tokens": 0.0,
    "num_output_tokens": 80.0,
    "num_requests": 8.0,
    "num_clients": 4.0,
    "tpot_ms.p50": 200.0,
    "ttft_ms.p50": 400.0,
    "duration_s": 10.0,
}


def roofline(arithmetic: str = "int8") -> Roofline:
    return Roofline(
        LIMITS, MODEL, ServerFacts("", "", "", weight_bytes=10**9, arithmetic=arithmetic)
    )


def test_decode_step_reads_weights_and_the_context() -> None:
    assert roofline().decode_step(FIGURES) == pytest.approx((1e9 + 105 * 1000) / 10e9 / 0.2)


def test_prefill_multiplies_each_token_with_each_weight_of_the_layers() -> None:
    done = 2 * (100 * 1e9 + 1e8)
    assert roofline().prefill(FIGURES) == pytest.approx(done / 1e12 / 0.4)
    assert roofline("bf16").prefill(FIGURES) == pytest.approx(done / 0.5e12 / 0.4)


def test_cached_tokens_are_not_computed() -> None:
    cached = {**FIGURES, "num_cached_tokens": 50.0}
    assert roofline().prefill(cached) < 0.51 * roofline().prefill(FIGURES)


def test_load_reads_weights_once_for_all_clients() -> None:
    shares = roofline().load(FIGURES)
    assert shares.of_bytes == pytest.approx((20 * 1e9 + 80 * 105 * 1000) / 10e9 / 10)
    assert shares.of_operations == pytest.approx(2 * 8 * (110 * 1e9 + 10 * 1e8) / 1e12 / 10)
    assert shares.text == "bytes 20%"


def test_text_names_the_closer_limit() -> None:
    assert Shares(0.5, 0.25).text == "bytes 50%"
    assert Shares(0.25, 0.5).text == "arithmetic 50%"
