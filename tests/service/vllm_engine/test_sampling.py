"""Each field of a request in the arguments of vLLM."""

from dataclasses import fields, replace
from typing import Any

import pytest

from service.domain.engine import Caller, Request
from service.domain.sampling import SamplingParams
from service.vllm_engine.sampling import HANDLING, Handling, prompt, sampling_arguments
from tests.fakes.constraint import FakeConstraint

REQUEST = Request((5, 6, 7), SamplingParams(max_tokens=10), frozenset({1}))
# A value that is not the default, for each field that is passed to vLLM.
VALUES: dict[str, Any] = {
    "prompt_token_ids": (8, 9),
    "stop_token_ids": frozenset({1, 2}),
    "cache_salt": "salt",
    "num_logprobs": 0,
    "num_prompt_logprobs": 0,
    "bad_token_sequences": ((3, 4),),
    "constraint": FakeConstraint(((3,),), 1, grammar='start: "a"'),
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 5,
    "min_p": 0.5,
    "seed": 0,
    "max_tokens": 9,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "repetition_penalty": 1.5,
    "logit_bias": {3: 1.0},
    "min_tokens": 1,
    "allowed_token_ids": frozenset({3}),
}


def arguments(request: Request, index: int = 0) -> dict[str, Any]:
    return sampling_arguments(request, index, max_model_len=100, grammar_end=None)


def sampled(**changes: Any) -> Request:
    return replace(REQUEST, sampling=replace(REQUEST.sampling, **changes))


def test_every_field_of_a_request_has_a_decision() -> None:
    names = {f.name for f in fields(Request)} | {f.name for f in fields(SamplingParams)}
    assert HANDLING.keys() == names - {"sampling"}


def test_every_field_for_vllm_has_a_value_here() -> None:
    assert VALUES.keys() == {name for name, by in HANDLING.items() if by is Handling.VLLM}


@pytest.mark.parametrize("name", VALUES)
def test_field_for_vllm_changes_the_arguments(name: str) -> None:
    is_of_request = name in {f.name for f in fields(Request)}
    changed = (
        replace(REQUEST, **{name: VALUES[name]})
        if is_of_request
        else sampled(**{name: VALUES[name]})
    )
    before = prompt(REQUEST), arguments(REQUEST)
    assert (prompt(changed), arguments(changed)) != before


def test_arguments_of_a_request_with_all_options() -> None:
    params = {name: VALUES[name] for name in VALUES if HANDLING[name] is Handling.VLLM}
    own = {f.name for f in fields(SamplingParams)} - {"stop_token_ids"}
    request = replace(
        sampled(**{name: value for name, value in params.items() if name in own}),
        **{name: value for name, value in params.items() if name not in own},
    )
    assert prompt(request) == {"prompt_token_ids": [8, 9], "cache_salt": "0:salt"}
    assert sampling_arguments(request, 0, 100, grammar_end=99) == {
        "max_tokens": 9,
        "min_tokens": 1,
        "temperature": 0.5,
        "top_p": 0.5,
        "top_k": 5,
        "min_p": 0.5,
        "seed": 0,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
        "repetition_penalty": 1.5,
        "logit_bias": {3: 1.0},
        "allowed_token_ids": [3],
        "_bad_words_token_ids": [[3, 4]],
        "stop_token_ids": [1, 2, 99],
        "ignore_eos": True,
        "logprobs": 0,
        "prompt_logprobs": 0,
        "structured_outputs": {"grammar": 'start: "a"'},
        "detokenize": False,
    }


def test_max_tokens_is_limited_to_the_rest_of_the_context() -> None:
    for max_tokens in (None, 98):
        assert arguments(sampled(max_tokens=max_tokens))["max_tokens"] == 97
    assert arguments(sampled(max_tokens=3, min_tokens=5))["min_tokens"] == 3


@pytest.mark.parametrize("greedy", [{"temperature": 0.0}, {"top_k": 1}, {"top_p": 0.0}])
def test_greedy_sampling_has_temperature_zero_and_no_other_sampler(greedy: dict[str, Any]) -> None:
    found = arguments(sampled(seed=3, min_p=0.5, **greedy))
    assert found["temperature"] == 0.0
    assert not {"top_p", "top_k", "min_p", "seed"} & found.keys()


def test_each_sequence_has_its_own_seed_below_two_to_the_63() -> None:
    assert [arguments(sampled(seed=7), i)["seed"] for i in range(3)] == [7, 8, 9]
    assert arguments(sampled(seed=-1))["seed"] == 2**63 - 1
    assert arguments(sampled(seed=2**63 - 1), 1)["seed"] == 0


def test_only_the_first_sequence_returns_log_probabilities_of_the_prompt() -> None:
    request = replace(REQUEST, n=2, num_prompt_logprobs=3)
    assert [arguments(request, i)["prompt_logprobs"] for i in range(2)] == [3, None]


def test_namespace_and_salt_are_separated() -> None:
    def salt(namespace: str, salt: str) -> Any:
        caller = Caller(cache_namespace=namespace)
        return prompt(replace(REQUEST, caller=caller, cache_salt=salt)).get("cache_salt")

    assert salt("", "") is None
    assert len({salt("a", "b"), salt("ab", ""), salt("", "ab"), salt("a", "")}) == 4
