"""From a checked request to text: the prompt, the engine's tokens, the answer's words."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing

from service.errors import DeadlinePassed
from service.text.answer import AnswerText, TextDelta
from service.text.chat_template import render_prompt
from service.types import ChatRequest, Request, ServedModel


async def prepare(chat: ChatRequest, model: ServedModel, deadline: float) -> Request:
    """Render and tokenize the conversation, off the event loop: a long one takes a while.

    Args:
        deadline: of `time.monotonic()`; when the caller will not wait any longer.

    Raises:
        TemplateRefused
    """
    prompt = await asyncio.to_thread(render_prompt, model.tokenizer, chat.messages, chat.prompt)
    sampling = chat.sampling
    ends = frozenset() if sampling.ignore_eos else model.eos_token_ids
    return Request(
        request_id=uuid.uuid4().hex,
        prompt_token_ids=tuple(prompt),
        sampling=sampling,
        stop_token_ids=sampling.stop_token_ids | ends,
        deadline=deadline,
    )


async def generate(model: ServedModel, request: Request) -> AsyncGenerator[TextDelta, None]:
    """The answer as it is generated. The first delta is empty: the request has been admitted.

    Raises:
        What `Engine.generate` raises, and DeadlinePassed when the deadline passes at any time.
    """
    answer = AnswerText(model.tokenizer, request.sampling)
    async with aclosing(model.engine.generate(request)) as outputs:
        delta = TextDelta()
        while delta.finish_reason is None:
            try:
                async with asyncio.timeout_at(_loop_time(request.deadline)):
                    output = await anext(outputs)
            except TimeoutError as error:
                raise DeadlinePassed(
                    "The deadline passed before the answer was complete."
                ) from error
            delta = answer.push(output)
            yield delta


def _loop_time(deadline: float | None) -> float | None:
    """A time of `time.monotonic()` as one of the event loop's own clock."""
    if deadline is None:
        return None
    return asyncio.get_running_loop().time() + deadline - time.monotonic()
