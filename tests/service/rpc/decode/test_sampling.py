"""Sampling parameters: the decoded value of each, and the errors of invalid ones."""

import math
from typing import Any

import pytest

from chatrpc.v1 import chat_pb2
from service.domain.backend import ModelSpec
from service.domain.sampling import SamplingParams
from service.errors import InvalidField
from service.rpc.decode.sampling import (
    sampling_params,
)

DEFAULTS = SamplingParams(temperature=0.2, top_p=0.9)
SPEC = ModelSpec(1000, 128, DEFAULTS, vocab_size=100)


def sampled(**fields: Any) -> SamplingParams:
    return sampling_params(chat_pb2.SamplingParams(**fields), SPEC)


def rejected(**fields: Any) -> str:
    """Return the field of the error."""
    with pytest.raises(InvalidField) as caught:
        sampled(**fields)
    return caught.value.field


def test_absent_sampling_fields_have_the_defaults_of_the_model() -> None:
    assert sampled() == DEFAULTS


def test_fields_that_the_request_sets_are_named() -> None:
    assert sampled().given == frozenset()
    given = sampled(temperature=0.0, max_completion_tokens=5, n=2, stop=["x"]).given
    assert given == {"temperature", "max_tokens", "stop"}


def test_zero_is_a_value_and_not_absent() -> None:
    assert sampled(temperature=0.0, top_p=0.0, top_k=0, seed=0) == SamplingParams(
        temperature=0.0, top_p=0.0, seed=0
    )


def test_given_sampling_fields_replace_the_defaults() -> None:
    assert sampled(
        temperature=1.5,
        top_k=7,
        min_p=0.5,
        seed=-3,
        max_completion_tokens=9,
        stop=["a", "b"],
        stop_token_ids=[4, 5],
        ignore_eos=True,
    ) == SamplingParams(
        temperature=1.5,
        top_p=0.9,
        top_k=7,
        min_p=0.5,
        seed=-3,
        max_tokens=9,
        stop=("a", "b"),
        stop_token_ids=frozenset({4, 5}),
        ignore_eos=True,
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", 1.1),
        ("top_p", -1),
        ("min_p", 1.1),
        ("max_completion_tokens", 0),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("frequency_penalty", math.nan),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", math.inf),
    ],
)
def test_number_out_of_range_is_rejected_with_its_field(field: str, value: float) -> None:
    assert rejected(**{field: value}) == f"sampling.{field}"


def test_stop_strings_are_bounded_and_not_empty() -> None:
    assert rejected(stop=["a", ""]) == "sampling.stop[1]"
    assert rejected(stop=["a"] * 65) == "sampling.stop"
    assert rejected(stop=["a" * 257]) == "sampling.stop[0]"


def test_stop_token_outside_the_vocabulary_is_rejected() -> None:
    assert rejected(stop_token_ids=[1, 100]) == "sampling.stop_token_ids[1]"


def test_fields_about_tokens_are_decoded() -> None:
    assert sampled(
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=2,
        logit_bias={7: -100, 8: 100},
        min_tokens=3,
        allowed_token_ids=[1, 2],
        bad_words=["no", "never"],
        include_stop_str_in_output=True,
        skip_special_tokens=False,
    ) == SamplingParams(
        temperature=DEFAULTS.temperature,
        top_p=DEFAULTS.top_p,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=2.0,
        logit_bias={7: -100.0, 8: 100.0},
        min_tokens=3,
        allowed_token_ids=frozenset({1, 2}),
        bad_words=("no", "never"),
        include_stop_str_in_output=True,
        skip_special_tokens=False,
    )


def test_logit_bias_out_of_range_is_rejected() -> None:
    assert rejected(logit_bias={100: 1.0}) == "sampling.logit_bias"
    assert rejected(logit_bias={1: 100.5}) == "sampling.logit_bias"
    assert rejected(logit_bias={1: math.nan}) == "sampling.logit_bias"
    many = dict.fromkeys(range(1025), 1.0)
    assert rejected(logit_bias=many) == "sampling.logit_bias"


def test_allowed_token_outside_the_vocabulary_is_rejected() -> None:
    assert rejected(allowed_token_ids=[1, 100]) == "sampling.allowed_token_ids[1]"
    assert rejected(allowed_token_ids=[1] * 101) == "sampling.allowed_token_ids"


def test_bad_words_are_bounded_and_not_empty() -> None:
    assert rejected(bad_words=["a", ""]) == "sampling.bad_words[1]"
    assert rejected(bad_words=["a"] * 65) == "sampling.bad_words"


def test_stop_tokens_are_bounded() -> None:
    assert rejected(stop_token_ids=[1] * 1025) == "sampling.stop_token_ids"


def test_min_tokens_above_max_completion_tokens_is_rejected() -> None:
    assert sampled(min_tokens=4, max_completion_tokens=4).min_tokens == 4
    assert rejected(min_tokens=5, max_completion_tokens=4) == "sampling.min_tokens"
