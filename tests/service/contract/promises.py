"""Requests to an engine, and the check of their outputs against the definitions of the options."""

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import fields, replace
from typing import Any

import pytest

from service.domain.engine import Engine, FinishReason, Request, TokenLogprobs, TokenOutput
from service.domain.sampling import SamplingParams
from tests.fakes.wait import failsafe, until
from tests.support.option_definitions import (
    allowed_tokens,
    logprobs_of,
    probabilities,
    processed_logit,
)
from tests.support.reference_model import ReferenceModel

VOCAB_SIZE = 300
END = 1  # the model's own end token
MAX_MODEL_LEN = 256
# Equal weights of the output layer make these tokens equally likely everywhere.
TIED = {41: 40, 42: 40}

# The highest temperature of engines that have one. The API's maximum is 2.
MAX_TEMPERATURE = {"vllm": 2.0}

# Engines sum in different orders, so their float32 logits differ slightly.
_TOLERANCE = 2e-3
# `stop_token_ids` is a field of both. An engine reads that of the request.
_SAMPLING_FIELDS = {f.name for f in fields(SamplingParams)} - {f.name for f in fields(Request)}


def make_prompt(seed: int, length: int = 20) -> tuple[int, ...]:
    """Return random tokens. Prompts of different seeds share no beginning."""
    return tuple(random.Random(seed).choices(range(2, VOCAB_SIZE), k=length))


def make_request(prompt: int | tuple[int, ...] = 0, **options: Any) -> Request:
    """Return a greedy request for 12 tokens, with `options` of `Request` and `SamplingParams`.

    Args:
        prompt: Its tokens, or the seed of random ones.
    """
    chosen = {"temperature": 0.0, "max_tokens": 12} | options
    sampling = {name: value for name, value in chosen.items() if name in _SAMPLING_FIELDS}
    rest = {name: value for name, value in chosen.items() if name not in _SAMPLING_FIELDS}
    token_ids = make_prompt(prompt) if isinstance(prompt, int) else prompt
    return Request(token_ids, SamplingParams(**sampling), **rest)


def skip_unless_served(engine: Engine, *names: str) -> None:
    """Skip the test if the engine does not serve one of these fields."""
    if unsupported := engine.capabilities.unsupported & set(names):
        pytest.skip(f"the engine does not serve {', '.join(sorted(unsupported))}")


async def collect(engine: Engine, request: Request) -> list[TokenOutput]:
    """Return all items of a request."""
    async with failsafe(), aclosing(engine.generate(request)) as outputs:
        return [output async for output in outputs]


async def generate(engine: Engine, **options: Any) -> list[int]:
    """Return the tokens of the first sequence of a request."""
    return tokens(await collect(engine, make_request(**options)))


def tokens(outputs: Sequence[TokenOutput], index: int = 0) -> list[int]:
    """Return the tokens of a sequence."""
    return [token_id for o in outputs if o.index == index for token_id in o.token_ids]


def finish_reason(outputs: Sequence[TokenOutput], index: int = 0) -> FinishReason | None:
    """Return the reason why a sequence ended."""
    [reason] = [o.finish_reason for o in outputs if o.index == index and o.finish_reason]
    return reason


async def until_idle(engine: Engine) -> None:
    """Wait until no sequence runs or waits and no block is in use."""

    def is_idle() -> bool:
        s = engine.stats()
        return s.num_running == s.num_waiting == 0 and s.num_free_kv_blocks == s.num_kv_blocks > 0

    await until(is_idle)


@asynccontextmanager
async def occupied(engine: Engine) -> AsyncIterator[None]:
    """Occupy a slot of the engine with a request that does not end in this context."""
    request = make_request(max_tokens=None)
    async with failsafe(), aclosing(engine.generate(request)) as outputs:
        while not (await anext(outputs)).token_ids:
            pass
        yield


class Definition:
    """The outputs that are right by the definitions of the options.

    Args:
        model: The model that the engine has loaded.
    """

    def __init__(self, model: ReferenceModel) -> None:
        self._model = model

    def logits(self, token_ids: Sequence[int]) -> list[float]:
        """Return the model's logits after these tokens."""
        return self._model.logits(token_ids)[-1]

    def chances(
        self, request: Request, output: Sequence[int] = (), *, slack: float = 0.0
    ) -> dict[int, float]:
        """Return the probabilities of the tokens that may be sampled after `output`."""
        row = self.logits((*request.prompt_token_ids, *output))
        return probabilities(_processed(row, request, output), request.sampling, slack)

    def check(self, request: Request, outputs: Sequence[TokenOutput]) -> None:
        """Check all items of a request that has ended without an error.

        The maximum length of a sequence is MAX_MODEL_LEN.
        """
        for index in range(request.n):
            own = [o for o in outputs if o.index == index and not o.is_progress]
            assert [o.finish_reason is not None for o in own] == [False] * (len(own) - 1) + [True]
            self._check_sequence(request, own)
        told = [o.prompt_logprobs for o in outputs if o.prompt_logprobs]
        first = next((o for o in outputs if o.token_ids and o.index == 0), None)
        assert told == ([first.prompt_logprobs] if first and first.prompt_logprobs else [])
        if request.num_prompt_logprobs is not None and first is not None:
            prompt = request.prompt_token_ids
            rows = self._model.logits(prompt)
            _check_logprobs(first.prompt_logprobs, rows, prompt[1:], request.num_prompt_logprobs)

    def _check_sequence(self, request: Request, own: Sequence[TokenOutput]) -> None:
        prompt, p = request.prompt_token_ids, request.sampling
        output = [token_id for o in own for token_id in o.token_ids]
        rows = self._model.logits((*prompt, *output))[len(prompt) - 1 :]
        for position, token_id in enumerate(output):
            before = output[:position]
            logits = _processed(rows[position], request, before)
            assert token_id in logits, f"{token_id} is forbidden after {before}"
            if p.is_greedy:
                assert logits[token_id] >= max(logits.values()) - _TOLERANCE
            else:
                assert token_id in probabilities(logits, p, slack=_TOLERANCE)
        room = MAX_MODEL_LEN - len(prompt)
        limit = room if p.max_tokens is None else min(p.max_tokens, room)
        stops = [i for i, token_id in enumerate(output) if token_id in request.stop_token_ids]
        if own[-1].finish_reason is FinishReason.LENGTH:
            assert not stops
            assert len(output) == limit
        elif own[-1].token_ids:
            assert own[-1].finish_reason is FinishReason.STOP
            assert stops == [len(output) - 1]
        else:
            assert own[-1].finish_reason is FinishReason.STOP
            assert not stops
            assert len(output) < limit
            assert not allowed_tokens(request, output, VOCAB_SIZE)
        logprobs = [entry for o in own for entry in o.logprobs]
        if request.num_logprobs is None:
            assert not logprobs
        else:
            assert [len(o.logprobs) for o in own] == [len(o.token_ids) for o in own]
            _check_logprobs(logprobs, rows, output, request.num_logprobs)


def _processed(row: Sequence[float], request: Request, output: Sequence[int]) -> dict[int, float]:
    """Return the allowed tokens and their logits after bias and penalties."""
    return {
        token_id: processed_logit(row[token_id], token_id, request, output)
        for token_id in allowed_tokens(request, output, VOCAB_SIZE)
    }


def _check_logprobs(
    entries: Sequence[TokenLogprobs],
    rows: Sequence[Sequence[float]],
    token_ids: Sequence[int],
    num_top: int,
) -> None:
    """Check the entries of `token_ids`, whose logits are `rows`."""
    assert [entry.token_id for entry in entries] == list(token_ids)
    for entry, row in zip(entries, rows, strict=False):
        expected = logprobs_of(row, entry.token_id, num_top)
        assert entry.logprob == pytest.approx(expected.logprob, abs=_TOLERANCE)
        # Tokens whose likelihoods differ by less than the tolerance may come in any order.
        found = [logprob for _, logprob in entry.top]
        assert found == pytest.approx([logprob for _, logprob in expected.top], abs=_TOLERANCE)
        assert [(-logprob, token_id) for token_id, logprob in entry.top] == sorted(
            (-logprob, token_id) for token_id, logprob in entry.top
        )
        for token_id, logprob in entry.top:
            own = logprobs_of(row, token_id, 0).logprob
            assert logprob == pytest.approx(own, abs=_TOLERANCE)


def with_sampling(request: Request, **changes: Any) -> Request:
    """Return the request with other sampling parameters."""
    return replace(request, sampling=replace(request.sampling, **changes))
