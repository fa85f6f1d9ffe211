import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from service.domain.engine import Request
from service.domain.sampling import SamplingParams
from service.engine.logits_processors import RuleBatch
from service.engine.token_rules import RowRules, TokenRules
from service.engine.transfer import to_device, to_host
from tests.support.device import TORCH_DEVICE

VOCAB_SIZE = 40

tokens = st.integers(0, VOCAB_SIZE - 1)
penalties = st.just(0.0) | st.floats(-2.0, 2.0)

requests = st.builds(
    Request,
    prompt_token_ids=st.lists(tokens, min_size=1, max_size=10).map(tuple),
    sampling=st.builds(
        SamplingParams,
        presence_penalty=penalties,
        frequency_penalty=penalties,
        repetition_penalty=st.just(1.0) | st.floats(0.1, 3.0),
        # Some of the tokens are outside the vocabulary.
        logit_bias=st.dictionaries(
            st.integers(0, VOCAB_SIZE + 5), st.floats(-100, 100), max_size=4
        ),
        min_tokens=st.integers(0, 3),
        allowed_token_ids=st.none() | st.frozensets(st.integers(0, VOCAB_SIZE + 5), max_size=30),
    ),
    stop_token_ids=st.frozensets(st.integers(0, VOCAB_SIZE + 5), max_size=3),
    bad_token_sequences=st.lists(
        st.lists(tokens, min_size=1, max_size=2).map(tuple), max_size=3
    ).map(tuple),
)
outputs = st.lists(tokens, max_size=12)


def rules_of(request: Request, output: list[int]) -> RowRules | None:
    rules = TokenRules.of(request)
    if rules is None:
        return None
    for token_id in output:
        rules.append(token_id)
    [row] = rules.rows(())
    return row


def written_out(logits: list[float], request: Request, output: list[int]) -> list[float]:
    p, processed = request.sampling, []
    for token_id, raw in enumerate(logits):
        logit = raw
        longer = (*output, token_id)
        if (
            (p.allowed_token_ids is not None and token_id not in p.allowed_token_ids)
            or (len(output) < p.min_tokens and token_id in request.stop_token_ids)
            or any(longer[-len(bad) :] == bad for bad in request.bad_token_sequences)
        ):
            logit = -math.inf
        logit += p.logit_bias.get(token_id, 0.0)
        if token_id in request.prompt_token_ids or token_id in output:
            factor = p.repetition_penalty
            logit = logit / factor if logit > 0 else logit * factor
        logit -= p.frequency_penalty * output.count(token_id)
        logit -= p.presence_penalty * (token_id in output)
        processed.append(logit)
    return processed


def processed(logits: Tensor, asked: list[tuple[Request, list[int]]]) -> tuple[Tensor, set[int]]:
    rules = {row: r for row, (q, a) in enumerate(asked) if (r := rules_of(q, a)) is not None}
    changed = logits.to(TORCH_DEVICE, copy=True)
    batch = RuleBatch(rules, logits.shape[-1], TORCH_DEVICE)
    [largest] = to_host([batch.apply(changed, to_device(batch.arrays, TORCH_DEVICE))])
    return changed.cpu(), set(batch.rows_without_token(largest))


@given(st.lists(st.tuples(requests, outputs), min_size=1, max_size=5), st.integers(0, 2**32))
def test_every_row_is_what_the_definitions_give(
    asked: list[tuple[Request, list[int]]], seed: int
) -> None:
    logits = torch.randn(len(asked), VOCAB_SIZE, generator=torch.Generator().manual_seed(seed)) * 5
    got, dead = processed(logits, asked)
    for row, (request, output) in enumerate(asked):
        expected = written_out(logits[row].tolist(), request, output)
        assert got[row].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-4)
        assert (row in dead) == all(logit == -math.inf for logit in expected)


@given(st.lists(st.tuples(requests, outputs), min_size=2, max_size=12), st.integers(0, 2**32))
def test_row_has_the_same_bits_by_itself_and_in_a_batch(
    asked: list[tuple[Request, list[int]]], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(asked), VOCAB_SIZE, generator=generator) * 5
    together, _ = processed(logits, asked)
    for row in range(len(asked)):
        separate, _ = processed(logits[row : row + 1], asked[row : row + 1])
        assert torch.equal(separate[0], together[row])


def test_rows_without_rules_are_not_touched() -> None:
    logits = torch.randn(3, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
    plain = Request((1,), SamplingParams())
    biased = replace(plain, sampling=SamplingParams(logit_bias={3: 5.0}))
    got, dead = processed(logits, [(plain, []), (biased, []), (plain, [])])
    assert torch.equal(got[::2], logits[::2])
    assert got[1, 3] == logits[1, 3] + 5.0
    assert dead == set()


def test_short_mask_forbids_the_remaining_tokens() -> None:
    request = Request((1,), SamplingParams(allowed_token_ids=frozenset({2})))
    got, _ = processed(torch.zeros(1, VOCAB_SIZE), [(request, [])])
    assert torch.isfinite(got[0]).nonzero().flatten().tolist() == [2]
