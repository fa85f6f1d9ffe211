"""Converts vLLM's outputs of one sequence to outputs of the engine."""

from collections.abc import Sequence
from dataclasses import replace

from service.domain.engine import FinishReason, Request, TokenLogprobs, TokenOutput
from service.errors import ConstraintFailed, StepFailed
from service.vllm_engine.client import Output, PositionLogprobs

_FINISH_REASONS = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "repetition": FinishReason.STOP,
}
# The value that vLLM's own server returns.
_LEAST_LOGPROB = -9999.0


class SequenceReader:
    """Reads vLLM's outputs of one sequence of a request.

    If the request's options leave no token, vLLM generates a forbidden one. Then the sequence ends
    before that token, as with the other engines.
    """

    def __init__(self, request: Request, index: int) -> None:
        self._request = request
        self._index = index
        self._token_ids: list[int] = []
        params = request.sampling
        self._allowed = params.allowed_token_ids
        self._min_tokens = params.min_tokens
        self._longest_bad = max(map(len, request.bad_token_sequences), default=0)
        self._is_restricted = bool(
            self._allowed is not None or self._min_tokens or request.bad_token_sequences
        )

    def is_incomplete(self) -> bool:
        """Return True if an end token has ended the sequence before its grammar was fulfilled.

        This takes time in proportion to the output.
        """
        constraint = self._request.constraint
        if constraint is None or not self._token_ids:
            return False
        is_stop_of_request = self._token_ids[-1] in self._request.sampling.stop_token_ids
        return not is_stop_of_request and not constraint.is_fulfilled(self._token_ids[:-1])

    def read(self, output: Output) -> TokenOutput:
        """Return an output without timings.

        Raises:
            StepFailed or a subclass: vLLM has ended the request with an error.
        """
        [completion] = output.outputs
        new = tuple(completion.token_ids)
        reason = completion.finish_reason
        num_top, num_prompt_top = self._request.num_logprobs, self._request.num_prompt_logprobs
        read = TokenOutput(
            new,
            None if reason is None else _FINISH_REASONS.get(reason),
            output.num_cached_tokens or 0,
            self._index,
            () if num_top is None else _logprobs(new, completion.logprobs, num_top),
            ()
            if num_prompt_top is None or self._index
            else _prompt_logprobs(output, num_prompt_top),
        )
        num_valid = self._num_valid(new)
        is_rejected = reason == "error" and self._request.constraint is not None
        if is_rejected and self._is_restricted and num_valid == len(new):
            # The grammar allows only tokens that the other options forbid.
            num_valid = max(0, len(new) - 1)
        if num_valid < len(new):
            read = replace(
                read,
                token_ids=new[:num_valid],
                finish_reason=FinishReason.STOP,
                logprobs=read.logprobs[:num_valid],
            )
        elif is_rejected:
            raise ConstraintFailed
        elif reason is not None and reason not in _FINISH_REASONS:
            raise StepFailed
        self._token_ids += read.token_ids
        return read

    def _num_valid(self, new: Sequence[int]) -> int:
        """Return the number of tokens before the first one that an option forbids."""
        if not self._is_restricted:
            return len(new)
        num_before = len(self._token_ids)
        # Only as many earlier tokens as a forbidden sequence can have, since outputs are long.
        last = tuple(self._token_ids[max(0, num_before - self._longest_bad) :])
        for position, token_id in enumerate(new):
            last = (*last, token_id)
            if self._is_forbidden(last, num_before + position):
                return position
        return len(new)

    def _is_forbidden(self, last: tuple[int, ...], num_before: int) -> bool:
        """Return True if an option forbids the last token, which has `num_before` before it."""
        if self._allowed is not None and last[-1] not in self._allowed:
            return True
        if num_before < self._min_tokens and last[-1] in self._request.stop_token_ids:
            return True
        return any(last[-len(bad) :] == bad for bad in self._request.bad_token_sequences)


def _logprobs(
    token_ids: Sequence[int], found: Sequence[PositionLogprobs] | None, num_top: int
) -> tuple[TokenLogprobs, ...]:
    if found is None:
        return ()
    return tuple(
        _token_logprobs(token_id, position, num_top)
        for token_id, position in zip(token_ids, found, strict=True)
    )


def _prompt_logprobs(output: Output, num_top: int) -> tuple[TokenLogprobs, ...]:
    """Return the log probabilities of the prompt; vLLM has None for the first token."""
    if not output.prompt_logprobs or output.prompt_token_ids is None:
        return ()
    pairs = zip(output.prompt_token_ids, output.prompt_logprobs, strict=True)
    return tuple(
        _token_logprobs(token_id, position, num_top)
        for token_id, position in pairs
        if position is not None
    )


def _token_logprobs(token_id: int, position: PositionLogprobs, num_top: int) -> TokenLogprobs:
    # The token itself is among the entries even if it is not one of the likeliest. Its rank is then
    # greater than their number.
    top = [
        (each, _finite(entry.logprob))
        for each, entry in position.items()
        if entry.rank is not None and entry.rank <= num_top
    ]
    top.sort(key=lambda pair: (-pair[1], pair[0]))
    return TokenLogprobs(token_id, _finite(position[token_id].logprob), tuple(top))


def _finite(logprob: float) -> float:
    """Return a log probability that JSON can represent. A token that a grammar forbids has -inf."""
    return max(logprob, _LEAST_LOGPROB)
