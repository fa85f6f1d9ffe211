"""From a checked request to text: the prompt, the engine's tokens, the answer's words."""

import asyncio
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import replace

from service.errors import InvalidField
from service.rpc.deadline import until
from service.text.answer import AnswerText, TextDelta
from service.text.chat_template import render_prompt
from service.types import ChatRequest, Request, ServedModel

# Not the event loop's own pool: that one is waited for at exit, however long a tokenization takes.
tokenizing = ThreadPoolExecutor(max_workers=2, thread_name_prefix="tokenize")


async def prepare(chat: ChatRequest, model: ServedModel, deadline: float) -> Request:
    """Render and tokenize the conversation, off the event loop: a long one takes a while.

    Args:
        deadline: of `time.monotonic()`; when the caller will not wait any longer.

    Raises:
        TemplateRefused
        InvalidField: the prompt holds a token that the model does not know.
        DeadlinePassed
    """
    async with until(deadline):
        prompt = await asyncio.get_running_loop().run_in_executor(
            tokenizing, render_prompt, model.tokenizer, chat.messages, chat.prompt
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
    )


async def generate(model: ServedModel, request: Request) -> AsyncGenerator[TextDelta, None]:
    """The answer as it is generated. The first delta is empty: the request has been admitted.

    Raises:
        What `Engine.generate` raises, and DeadlinePassed when the deadline passes at any time.
    """
    async with aclosing(model.engine.generate(request)) as outputs:
        await anext(outputs)
        yield TextDelta()
        answer, delta = AnswerText(model.tokenizer, request.sampling), TextDelta()
        while delta.finish_reason is None:
            async with until(request.deadline):
                output = await anext(outputs)
            delta = replace(answer.push(output), num_cached_tokens=output.num_cached_tokens)
            yield delta
