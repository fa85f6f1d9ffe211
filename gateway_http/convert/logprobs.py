"""Log probabilities in the forms of OpenAI's older API and of vLLM."""

from collections.abc import Iterable, Sequence

from msgspec import UNSET, UnsetType

from chatrpc.v1 import chat_pb2, completion_pb2
from gateway_http.protocol import completion as openai
from gateway_http.protocol.response import PromptLogprob, PromptLogprobs

# What OpenAI says for a probability of zero: JSON knows no infinity.
LEAST_LOGPROB = -9999.0

Token = chat_pb2.TokenLogprob | completion_pb2.PromptToken


def completion_logprobs(
    tokens: Sequence[Token], text_offset: Iterable[int]
) -> openai.CompletionLogprobs | None:
    """Of the tokens of a text completion; the first of a prompt has null for its probabilities."""
    if not tokens:
        return None
    return openai.CompletionLogprobs(
        tokens=[_name(token) for token in tokens],
        token_logprobs=[_logprob(token) for token in tokens],
        top_logprobs=[_top(token) for token in tokens],
        text_offset=list(text_offset),
    )


def prompt_logprobs(tokens: Sequence[Token], *, has_first: bool) -> PromptLogprobs | UnsetType:
    """vLLM's form: of each token by its id. The first one has none, and may be missing."""
    if not tokens:
        return UNSET
    rest = tokens[1:] if has_first else tokens
    return [None, *(_by_id(token) for token in rest)]


def _by_id(token: Token) -> dict[str, PromptLogprob]:
    told = {
        str(top.token_id): PromptLogprob(_floored(top.logprob), top.token, rank)
        for rank, top in enumerate(token.top, start=1)
    }
    own = PromptLogprob(_floored(token.logprob), token.token)
    return told if str(token.token_id) in told else {str(token.token_id): own, **told}


def _top(token: Token) -> dict[str, float] | None:
    """The likeliest tokens, and always the one that stands there."""
    own = _logprob(token)
    if own is None:
        return None
    return {_name(top): _floored(top.logprob) for top in token.top} | {_name(token): own}


def _logprob(token: Token) -> float | None:
    if isinstance(token, completion_pb2.PromptToken) and not token.HasField("logprob"):
        return None
    return _floored(token.logprob)


def _name(token: Token) -> str:
    """A token that is a part of a character is told by its bytes, as OpenAI does it."""
    try:
        return token.token_bytes.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.token_bytes)


def _floored(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB)
