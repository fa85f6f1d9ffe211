"""The `RemoteTokenizer` of upstreams with vLLM's API."""

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from service.domain.chat import Message, PromptOptions, Tool
from service.upstream.backend import UpstreamModel
from service.upstream.failover import first_result
from service.upstream.failures import Failures
from service.upstream.pool import Member, UpstreamPool
from service.upstream.requests import message_body, tool_body
from service.upstream.wire import DetokenizedText, Tokens, decoded

_Result = TypeVar("_Result")


class UpstreamTokenizer:
    """`service.domain.backend.RemoteTokenizer` for a model that upstreams serve."""

    def __init__(self, model: UpstreamModel, pool: UpstreamPool) -> None:
        self._model = model
        self._pool = pool

    async def encode(self, text: str, *, add_special_tokens: bool) -> Sequence[int]:
        body = {"prompt": text, "add_special_tokens": add_special_tokens}
        return (await self._call("/tokenize", body, Tokens, "text")).tokens

    async def encode_chat(
        self, messages: Sequence[Message], tools: Sequence[Tool], options: PromptOptions
    ) -> Sequence[int]:
        field = "conversation.messages"
        body: dict[str, Any] = {
            "messages": [
                message_body(message, f"{field}[{i}]", self._model.names)
                for i, message in enumerate(messages)
            ],
            "add_generation_prompt": options.add_generation_prompt,
            "continue_final_message": options.continue_final_message,
        }
        if tools:
            body["tools"] = [tool_body(tool) for tool in tools]
        if options.template_kwargs:
            body["chat_template_kwargs"] = options.template_kwargs
        tokens = (await self._call("/tokenize", body, Tokens, field)).tokens
        return tokens[-(options.truncate_prompt_tokens or 0) :]

    async def decode(self, token_ids: Sequence[int]) -> str:
        body = {"tokens": list(token_ids)}
        return (await self._call("/detokenize", body, DetokenizedText, "token_ids")).prompt

    async def _call(
        self, path: str, body: dict[str, Any], kind: type[_Result], default_field: str
    ) -> _Result:
        content = msgspec.json.encode({"model": self._model.upstream_id, **body})
        method = path.removeprefix("/").capitalize()
        failures = Failures(self._model.names, method, self._model.id, default_field)

        async def attempt(member: Member) -> _Result:
            response = await member.upstream.post(member.upstream.root + path, content, failures)
            return decoded(response, kind)

        return await first_result(self._pool, attempt)
