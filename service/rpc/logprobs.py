"""The engine's log probabilities as the wire's, with the tokens' texts."""

from chatrpc.v1 import chat_pb2, completion_pb2
from service.types import Tokenizer, TokenLogprobs


def token_logprob(token: TokenLogprobs, tokenizer: Tokenizer) -> chat_pb2.TokenLogprob:
    text = tokenizer.token_bytes(token.token_id)
    return chat_pb2.TokenLogprob(
        token=text.decode(errors="replace"),
        token_bytes=text,
        logprob=token.logprob,
        token_id=token.token_id,
        top=[
            token_logprob(TokenLogprobs(token_id, logprob), tokenizer)
            for token_id, logprob in token.top
        ],
    )


def prompt_tokens(
    token_ids: tuple[int, ...], logprobs: tuple[TokenLogprobs, ...], tokenizer: Tokenizer
) -> list[completion_pb2.PromptToken]:
    """Each token of a prompt; `logprobs` has one for each but the first."""
    first = tokenizer.token_bytes(token_ids[0])
    tokens = [
        completion_pb2.PromptToken(
            token=first.decode(errors="replace"), token_bytes=first, token_id=token_ids[0]
        )
    ]
    for logprob in logprobs:
        told = token_logprob(logprob, tokenizer)
        tokens.append(
            completion_pb2.PromptToken(
                token=told.token,
                token_bytes=told.token_bytes,
                logprob=told.logprob,
                token_id=told.token_id,
                top=told.top,
            )
        )
    return tokens
