"""Converts a request to the arguments of vLLM's requests, one for each sequence."""

from collections.abc import Mapping
from enum import Enum
from typing import Any

from service.domain.engine import Request
from service.vllm_engine.lark import single_grammar


class Handling(Enum):
    """The part of the service that gives effect to a field of a request."""

    VLLM = "passed to vLLM"
    ENGINE = "done by this package"
    TEXT = "done above the engine, by the text layer"


# Every field of `Request` and `SamplingParams`, except `Request.sampling`. A test compares the
# names, so that a new field needs a decision here.
HANDLING: Mapping[str, Handling] = {
    # Request
    "prompt_token_ids": Handling.VLLM,
    "stop_token_ids": Handling.VLLM,
    "deadline": Handling.ENGINE,
    "cache_salt": Handling.VLLM,
    "n": Handling.ENGINE,  # `n` requests of vLLM, so that each sequence ends by itself
    "priority": Handling.ENGINE,  # the order of the queue, and passed to vLLM
    "num_logprobs": Handling.VLLM,
    "num_prompt_logprobs": Handling.VLLM,
    "bad_token_sequences": Handling.VLLM,
    "constraint": Handling.VLLM,
    "caller": Handling.ENGINE,  # turns in the queue; its cache namespace is part of the cache salt
    # SamplingParams
    "temperature": Handling.VLLM,
    "top_p": Handling.VLLM,
    "top_k": Handling.VLLM,
    "min_p": Handling.VLLM,
    "seed": Handling.VLLM,
    "max_tokens": Handling.VLLM,
    "presence_penalty": Handling.VLLM,
    "frequency_penalty": Handling.VLLM,
    "repetition_penalty": Handling.VLLM,
    "logit_bias": Handling.VLLM,
    "min_tokens": Handling.VLLM,
    "allowed_token_ids": Handling.VLLM,
    "bad_words": Handling.TEXT,  # as `bad_token_sequences`
    "stop": Handling.TEXT,
    "ignore_eos": Handling.TEXT,  # as `stop_token_ids`
    "include_stop_str_in_output": Handling.TEXT,
    "skip_special_tokens": Handling.TEXT,
    "given": Handling.TEXT,  # the fields that a request has set
}
# The fields that vLLM rejects while it uses drafts.
UNSUPPORTED_WITH_DRAFTS = frozenset({"min_p", "logit_bias"})

# vLLM rejects higher temperatures, and so does the API. A model's own default may be higher.
_MAX_TEMPERATURE = 2.0
# vLLM's seeds are below 2**63. It takes -1 as no seed.
_NUM_SEEDS = 2**63


def prompt(request: Request) -> dict[str, Any]:
    """Return the prompt of a request, as vLLM's `TokensPrompt`."""
    namespace, salt = request.caller.cache_namespace, request.cache_salt
    tokens: dict[str, Any] = {"prompt_token_ids": list(request.prompt_token_ids)}
    if namespace or salt:
        # With its length, the namespace ends at a known position. So no two pairs have equal texts.
        tokens["cache_salt"] = f"{len(namespace)}:{namespace}{salt}"
    return tokens


def sampling_arguments(
    request: Request, index: int, max_model_len: int, grammar_end: int | None
) -> dict[str, Any]:
    """Return the arguments of vLLM's `SamplingParams` for one sequence of a request.

    `structured_outputs` has the arguments of vLLM's `StructuredOutputsParams`.

    Args:
        index: Index of the sequence.
        max_model_len: Maximum length of a sequence in tokens, prompt and output together.
        grammar_end: Id of the token that vLLM generates at the end of a grammar; None if unknown.
    """
    params = request.sampling
    room = max_model_len - len(request.prompt_token_ids)
    max_tokens = room if params.max_tokens is None else min(params.max_tokens, room)
    ends = set(request.stop_token_ids)
    if request.constraint is not None and grammar_end is not None:
        ends.add(grammar_end)
    arguments: dict[str, Any] = {
        "max_tokens": max_tokens,
        "min_tokens": min(params.min_tokens, max_tokens),
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "repetition_penalty": params.repetition_penalty,
        "logit_bias": dict(params.logit_bias) or None,
        "allowed_token_ids": (
            None if params.allowed_token_ids is None else sorted(params.allowed_token_ids)
        ),
        "_bad_words_token_ids": [list(tokens) for tokens in request.bad_token_sequences] or None,
        "stop_token_ids": sorted(ends),
        "ignore_eos": True,  # the model's end tokens are among `stop_token_ids`
        "logprobs": request.num_logprobs,
        # vLLM computes the whole prompt for them, without the prefix cache.
        "prompt_logprobs": request.num_prompt_logprobs if index == 0 else None,
        "structured_outputs": (
            None
            if request.constraint is None
            else {"grammar": single_grammar(request.constraint.grammar)}
        ),
        "detokenize": False,
    }
    if params.is_greedy:
        return {**arguments, "temperature": 0.0}
    return {
        **arguments,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "min_p": params.min_p,
        "seed": None if params.seed is None else (params.seed + index) % _NUM_SEEDS,
    }
