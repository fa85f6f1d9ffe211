"""Converts log probabilities to protobuf messages."""

from collections.abc import Iterable, Iterator, Sequence

from chatrpc.v1 import chat_pb2, completion_pb2
from service.domain.backend import DecodedLogprob

# JSON has no infinity. OpenAI's API reports this value for a token that cannot be generated.
_LEAST = -9999.0


def token_logprobs(logprobs: Iterable[DecodedLogprob]) -> Iterator[chat_pb2.TokenLogprob]:
    """Yield the messages of tokens with a log probability."""
    return (_token_logprob(each) for each in logprobs if each.logprob is not None)


def prompt_tokens(logprobs: Sequence[DecodedLogprob]) -> list[completion_pb2.PromptToken]:
    """Return the tokens of a prompt. The first has no log probability."""
    tokens = []
    for each in logprobs:
        token = completion_pb2.PromptToken(
            token=token_text(each.token), token_bytes=each.token, token_id=each.token_id or 0
        )
        if each.logprob is not None:
            token.logprob = max(each.logprob, _LEAST)
            token.top.extend(map(_token_logprob, each.top))
        tokens.append(token)
    return tokens


def token_text(token: bytes) -> str:
    """Return a token as OpenAI's API writes it: its text, or `bytes:\\x..` if it is not UTF-8."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def _token_logprob(each: DecodedLogprob) -> chat_pb2.TokenLogprob:
    return chat_pb2.TokenLogprob(
        token=token_text(each.token),
        token_bytes=each.token,
        logprob=_LEAST if each.logprob is None else max(each.logprob, _LEAST),
        token_id=each.token_id or 0,
        top=map(_token_logprob, each.top),
    )
