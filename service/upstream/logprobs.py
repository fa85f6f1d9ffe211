"""Converts the log probabilities of upstreams."""

from collections.abc import Sequence

from service.domain.backend import DecodedLogprob
from service.errors import UpstreamInvalidResponse
from service.upstream.wire import Logprobs, PromptLogprob, PromptLogprobs, TokenLogprob


def decoded_logprobs(
    logprobs: Logprobs | None, num_top: int, token_ids: Sequence[int] = ()
) -> tuple[DecodedLogprob, ...]:
    """Return the log probabilities of a choice, in either of the two forms of OpenAI's API.

    Args:
        num_top: Maximum number of alternatives of each token.
        token_ids: The ids of the tokens, if the upstream returns them.
    """
    if logprobs is None:
        return ()
    if logprobs.content is not None:
        found = [_of_chat(each, num_top) for each in logprobs.content]
    else:
        found = _of_completion(logprobs, num_top)
    if len(token_ids) == len(found):
        found = [
            each._replace(token_id=token_id)
            for each, token_id in zip(found, token_ids, strict=True)
        ]
    return tuple(found)


def prompt_logprobs(
    entries: PromptLogprobs | None, num_top: int, token_ids: Sequence[int]
) -> tuple[DecodedLogprob, ...]:
    """Return the log probabilities of a prompt's tokens, as vLLM returns them.

    In each entry the first token is that of the prompt. The first entry is empty.
    """
    found = []
    for i, entry in enumerate(entries or ()):
        pairs = [_prompt_token(key, value) for key, value in (entry or {}).items()]
        if pairs:
            top = sorted(pairs, key=_descending)[:num_top]
            found.append(pairs[0]._replace(top=tuple(top)))
        else:
            found.append(DecodedLogprob(b"", None, token_ids[i] if i < len(token_ids) else None))
    return tuple(found)


def _of_chat(each: TokenLogprob, num_top: int) -> DecodedLogprob:
    top = tuple(_of_chat(one, 0) for one in (each.top_logprobs or ())[:num_top])
    return DecodedLogprob(_token_bytes(each), each.logprob, each.id, top)


def _token_bytes(each: TokenLogprob) -> bytes:
    if each.bytes is None:
        return each.token.encode(errors="replace")
    try:
        return bytes(each.bytes)
    except ValueError:
        raise UpstreamInvalidResponse(
            "The upstream service returned bytes of a token that are none."
        ) from None


def _of_completion(logprobs: Logprobs, num_top: int) -> list[DecodedLogprob]:
    """Return log probabilities in the form of text completions, where tokens have only a text."""
    tokens, values = logprobs.tokens or [], logprobs.token_logprobs or []
    tops = logprobs.top_logprobs or [None] * len(tokens)
    if not len(tokens) == len(values) == len(tops):
        raise UpstreamInvalidResponse(
            "The upstream service returned log probabilities that do not match their tokens."
        )
    return [
        DecodedLogprob(token.encode(errors="replace"), value, top=_alternatives(top, num_top))
        for token, value, top in zip(tokens, values, tops, strict=True)
    ]


def _alternatives(top: dict[str, float | None] | None, num_top: int) -> tuple[DecodedLogprob, ...]:
    found = [
        DecodedLogprob(token.encode(errors="replace"), value)
        for token, value in (top or {}).items()
    ]
    return tuple(sorted(found, key=_descending)[:num_top])


def _prompt_token(token_id: str, each: PromptLogprob) -> DecodedLogprob:
    if not token_id.isdecimal() or len(token_id) > 10:
        raise UpstreamInvalidResponse("The upstream service returned a token id that is none.")
    token = (each.decoded_token or "").encode(errors="replace")
    return DecodedLogprob(token, each.logprob, int(token_id))


def _descending(each: DecodedLogprob) -> float:
    return 0.0 if each.logprob is None else -each.logprob
