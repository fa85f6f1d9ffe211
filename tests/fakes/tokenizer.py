"""A tokenizer whose tokens are bytes, so that tests can generate incomplete characters."""

from collections.abc import Sequence
from typing import Any

from service.domain.chat import PromptOptions
from service.errors import TemplateRejected

EOS = 256


class ByteTokenizer:
    """`service.domain.model.Tokenizer`: ids 0-255 are bytes, 256 is the end of a turn."""

    vocab_size = 257
    max_token_chars = 5

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return [*text.encode(), *([EOS] if add_special_tokens else [])]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        out = b"".join(
            bytes([i]) if i < EOS else b"" if skip_special_tokens else b"<eos>" for i in token_ids
        )
        return out.decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < EOS else b"<eos>" if token_id == EOS else b""

    def special_token_id(self, text: str) -> int | None:
        return None

    def render_chat(self, messages: list[dict[str, Any]], options: PromptOptions) -> str:
        if any(m["content"] == "refuse me" for m in messages):
            raise TemplateRejected("no")
        extra = "".join(f"[{k}={v}]" for k, v in sorted(options.template_kwargs.items()))
        turns = "".join(f"<{m['role']}>{m['content']}" for m in messages)
        return extra + turns + ("<assistant>" if options.add_generation_prompt else "")
