"""From a checked request to text: the prompt, the engine's tokens, the answer's words."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager

from service.errors import DeadlinePassed, InvalidField
from service.text.answer import AnswerText, TextDelta
from service.text.chat_template import render_prompt
from service.types import ChatRequest, Request, ServedModel, Tokenizer

# The caller's own deadline ends the call by itself, at its time; ours follows, for callers without
# one, and the two never race.
_DEADLINE_SLACK_S = 0.5

# Not the event loop's own pool: that one is waited for at exit, however long a tokenization takes.
_tokenizing = ThreadPoolExecutor(max_workers=2, thread_name_prefix="tokenize")


async def prepare(chat: ChatRequest, model: ServedModel, deadline: float) -> Request:
    """Render and tokenize the conversation, off the event loop: a long one takes a while.

    Args:
        deadline: of `time.monotonic()`; when the caller will not wait any longer.

    Raises:
        TemplateRefused
        InvalidField: the prompt holds a token that the model does not know.
        DeadlinePassed
    """
    async with _until(deadline):
        prompt = await asyncio.get_running_loop().run_in_executor(
            _tokenizing, render_prompt, model.tokenizer, chat.messages, chat.prompt
        )
    if prompt and max(prompt) >= model.vocab_size:
        raise InvalidField("messages", f"The model does not know the token {max(prompt)}.")
    sampling = chat.sampling
    ends = frozenset() if sampling.ignore_eos else model.eos_token_ids
    return Request(
        prompt_token_ids=tuple(prompt),
        sampling=sampling,
        stop_token_ids=sampling.stop_token_ids | ends,
        deadline=deadline,
        cache_salt=chat.cache_salt,
        n=chat.n,
        priority=chat.priority,
        num_logprobs=chat.num_logprobs,
        num_prompt_logprobs=chat.num_prompt_logprobs,
        bad_token_sequences=tuple(_bad_token_sequences(sampling.bad_words, model.tokenizer)),
    )


async def generate(model: ServedModel, request: Request) -> AsyncGenerator[TextDelta, None]:
    """The answers as they are generated, until the last of them has a finish reason.

    The first delta is empty: the request has been admitted.

    Raises:
        What `Engine.generate` raises, and DeadlinePassed when the deadline passes at any time.
    """
    async with aclosing(model.engine.generate(request)) as outputs:
        await anext(outputs)
        yield TextDelta()
        answers = {i: AnswerText(model.tokenizer, request.sampling) for i in range(request.n)}
        ended = None
        while answers:
            async with _until(request.deadline):
                output = await outputs.asend(ended)
            delta = answers[output.index].push(output)
            ended = None
            if delta.finish_reason is not None:
                ended = output.index  # by a stop string perhaps, of which engines know nothing
                del answers[ended]
            yield delta


def _bad_token_sequences(words: Iterable[str], tokenizer: Tokenizer) -> Iterator[tuple[int, ...]]:
    """Each word as it is written at the start of a text and after a space."""
    for word in words:
        for text in {word, f" {word.lstrip()}"}:
            if token_ids := tokenizer.encode(text, add_special_tokens=False):
                yield tuple(token_ids)


@asynccontextmanager
async def _until(deadline: float | None) -> AsyncIterator[None]:
    """Cancel the body and raise DeadlinePassed when the deadline, of `time.monotonic()`, passes."""
    loop_time = None
    if deadline is not None:
        remaining_s = deadline - time.monotonic() + _DEADLINE_SLACK_S
        loop_time = asyncio.get_running_loop().time() + remaining_s
    try:
        async with asyncio.timeout_at(loop_time):
            yield
    except TimeoutError as error:
        raise DeadlinePassed("The deadline passed before the answer was complete.") from error
