"""The engine's log probabilities as the wire's, with the tokens' texts."""

from collections.abc import Sequence

from chatrpc.v1 import chat_pb2, completion_pb2
from service.domain.engine import Request, TokenLogprobs
from service.domain.model import Tokenizer
from service.errors import InvalidField

# JSON has no infinity; this is what OpenAI says of what cannot be.
_LEAST = -9999.0


# An answer in one piece has at most 32 MiB; a log probability with its token takes 20 to 60 bytes.
MAX_AT_ONCE = 400_000


def check_number(requests: Sequence[Request], max_model_len: int, *, is_streamed: bool) -> None:
    """Refuse what would be too many log probabilities for one message.

    Raises:
        InvalidField
    """
    if sum(map(_num_of_prompt, requests)) > MAX_AT_ONCE:
        raise InvalidField(
            "prompt_logprobs",
            f"At most {MAX_AT_ONCE} log probabilities of prompt tokens are told at once.",
        )
    num_of_answers = sum(_num_of_answers(request, max_model_len) for request in requests)
    if not is_streamed and num_of_answers > MAX_AT_ONCE:
        raise InvalidField(
            "logprobs",
            f"At most {MAX_AT_ONCE} log probabilities are told in one piece, and these could be "
            f"{num_of_answers}: stream the answer, or limit its tokens.",
        )


def _num_of_prompt(request: Request) -> int:
    if request.num_prompt_logprobs is None:
        return 0
    return request.n * len(request.prompt_token_ids) * (1 + request.num_prompt_logprobs)


def _num_of_answers(request: Request, max_model_len: int) -> int:
    if request.num_logprobs is None:
        return 0
    room = max_model_len - len(request.prompt_token_ids)
    longest = min(request.sampling.max_tokens or room, room)
    return request.n * longest * (1 + request.num_logprobs)


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
