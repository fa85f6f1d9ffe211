"""Converts log probabilities to the forms of OpenAI's text completions and of vLLM."""

from collections.abc import Iterable, Sequence

from msgspec import UNSET, UnsetType

from chatrpc.v1 import chat_pb2, completion_pb2
from gateway_http.protocol import completion as openai
from gateway_http.protocol.response import PromptLogprob, PromptLogprobs

# OpenAI's value for a probability of zero: JSON has no infinity.
LEAST_LOGPROB = -9999.0

Token = chat_pb2.TokenLogprob | completion_pb2.PromptToken


def completion_logprobs(
    tokens: Sequence[Token], text_offset: Iterable[int]
) -> openai.CompletionLogprobs | None:
    """Convert the log probabilities of a text completion. Return None if there are none.

    The first token of a prompt has no log probability: its values are null.
    """
    if not tokens:
        return None
    return openai.CompletionLogprobs(
        tokens=[_name(token) for token in tokens],
        token_logprobs=[_logprob(token) for token in tokens],
        top_logprobs=[_top(token) for token in tokens],
        text_offset=list(text_offset),
    )


def prompt_logprobs(tokens: Sequence[Token], *, has_first: bool) -> PromptLogprobs | UnsetType:
    """Convert the log probabilities of a prompt to vLLM's form, which is keyed by token id.

    Args:
        tokens: The tokens of the prompt.
        has_first: True if the first token, which has no log probability, is among them.
    """
    if not tokens:
        return UNSET
    rest = tokens[1:] if has_first else tokens
    return [None, *(_by_id(token) for token in rest)]


def _by_id(token: Token) -> dict[str, PromptLogprob]:
    likeliest = {
        str(top.token_id): PromptLogprob(_floored(top.logprob), top.token, rank)
        for rank, top in enumerate(token.top, start=1)
    }
    own = PromptLogprob(_floored(token.logprob), token.token)
    key = str(token.token_id)
    return likeliest if key in likeliest else {key: own, **likeliest}


def _top(token: Token) -> dict[str, float] | None:
    """Return the log probabilities of the likeliest tokens and of the token, by text.

    Return None if the token has no log probability.
    """
    own = _logprob(token)
    if own is None:
        return None
    return {_name(top): _floored(top.logprob) for top in token.top} | {_name(token): own}


def _logprob(token: Token) -> float | None:
    if isinstance(token, completion_pb2.PromptToken) and not token.HasField("logprob"):
        return None
    return _floored(token.logprob)


def _name(token: Token) -> str:
    """Return the text of a token, or its bytes in OpenAI's form if a character is incomplete."""
    try:
        return token.token_bytes.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.token_bytes)


def _floored(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB)
