"""The engine's log probabilities as the wire's, with the tokens' texts."""

from chatrpc.v1 import chat_pb2, completion_pb2
from service.types import Tokenizer, TokenLogprobs

# JSON has no infinity; this is what OpenAI says of what cannot be.
_LEAST = -9999.0


def token_logprob(token: TokenLogprobs, tokenizer: Tokenizer) -> chat_pb2.TokenLogprob:
    token_bytes = tokenizer.token_bytes(token.token_id)
    return chat_pb2.TokenLogprob(
        token=token_text(token_bytes),
        token_bytes=token_bytes,
        logprob=max(token.logprob, _LEAST),
        token_id=token.token_id,
        top=[
            token_logprob(TokenLogprobs(token_id, logprob), tokenizer)
            for token_id, logprob in token.top
        ],
    )


def token_text(token_bytes: bytes) -> str:
    """The token as OpenAI writes it: its text, or the bytes of what is no whole character."""
    try:
        return token_bytes.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token_bytes)


def prompt_tokens(
    token_ids: tuple[int, ...], logprobs: tuple[TokenLogprobs, ...], tokenizer: Tokenizer
) -> list[completion_pb2.PromptToken]:
    """Each token of a prompt; `logprobs` has one for each but the first."""
    first = tokenizer.token_bytes(token_ids[0])
    tokens = [
        completion_pb2.PromptToken(
            token=token_text(first), token_bytes=first, token_id=token_ids[0]
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
