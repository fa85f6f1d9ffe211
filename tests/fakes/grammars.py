"""Grammars over the byte tokenizer, and an engine that generates random allowed tokens."""

import asyncio
import random
from collections.abc import AsyncGenerator

from llguidance import LLTokenizer, TokenizerWrapper

from service.domain.engine import FinishReason, Request, TokenOutput
from service.domain.grammar import Matcher
from service.text.grammars import CompiledGrammars
from tests.fakes.engine import FakeEngine
from tests.fakes.tokenizer import EOS

# This grammar costs more than is allowed, but not at its beginning.
COSTLY_LATER = 'start: ("a" | "b") rest\nrest: /a/ rest "x"'

_CLOSING = {*b'"]}<', EOS}


class _Bytes:
    """The attributes of a tokenizer that llguidance reads."""

    eos_token_id = EOS
    bos_token_id = None
    tokens = (*(bytes([i]) for i in range(EOS)), b"<eos>")
    special_token_ids = (EOS,)

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


def byte_trie() -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(_Bytes()), n_vocab=EOS + 1, slices=[])


def byte_grammars() -> CompiledGrammars:
    return CompiledGrammars(byte_trie(), {"<eos>": EOS})


def allowed(matcher: Matcher) -> list[int]:
    """Return the token ids that the matcher allows next."""
    mask = matcher.allowed_tokens()
    return [i for i in range(len(mask) * 8) if mask[i // 8] >> i % 8 & 1]


def choose_token(choose: random.Random, token_ids: list[int]) -> int:
    """Return a random token id. Tokens that close something are chosen more often."""
    closing = [token_id for token_id in token_ids if token_id in _CLOSING]
    return choose.choice(closing if closing and choose.random() < 0.4 else token_ids)


class RandomEngine(FakeEngine):
    """An engine that generates random tokens among those that the constraint allows."""

    def __init__(self, seed: int, max_tokens: int = 2000) -> None:
        super().__init__()
        self._choose = random.Random(seed)
        self._max_tokens = max_tokens

    async def generate(
        self, request: Request, *, is_reserved: bool = False
    ) -> AsyncGenerator[TokenOutput, int | None]:
        self.requests.append(request)
        assert request.constraint is not None
        matcher = request.constraint.matcher()
        yield TokenOutput()
        for _ in range(self._max_tokens):
            await asyncio.sleep(0)
            token_id = choose_token(self._choose, allowed(matcher))
            matcher.advance(token_id)
            if token_id in request.stop_token_ids:
                yield TokenOutput((token_id,), FinishReason.STOP)
                return
            yield TokenOutput((token_id,))
        yield TokenOutput((), FinishReason.LENGTH)
