"""Grammars over the byte tokenizer, and an engine that obeys them and nothing else."""

import asyncio
import random
from collections.abc import AsyncGenerator

from llguidance import LLTokenizer, TokenizerWrapper

from service.text.grammars import CompiledGrammars
from service.types import FinishReason, Matcher, Request, TokenOutput
from tests.fakes.engine import FakeEngine
from tests.fakes.tokenizer import EOS


class _Bytes:
    """What llguidance asks of a tokenizer."""

    eos_token_id = EOS
    bos_token_id = None
    tokens = (*(bytes([i]) for i in range(EOS)), b"<eos>")
    special_token_ids = (EOS,)

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


def byte_trie() -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(_Bytes()), n_vocab=EOS + 1, slices=[])


def byte_grammars() -> CompiledGrammars:
    return CompiledGrammars(byte_trie())


def allowed(matcher: Matcher) -> list[int]:
    """The token ids that may come next."""
    mask = matcher.allowed_tokens()
    return [i for i in range(len(mask) * 8) if mask[i // 8] >> i % 8 & 1]


class RandomEngine(FakeEngine):
    """Answers each request with tokens chosen at random among those that its constraint allows.

    Unlike a model it has no sense of when to end: `end_bias` is how often it does where it may.
    """

    def __init__(self, seed: int, max_tokens: int = 400, end_bias: float = 0.5) -> None:
        super().__init__()
        self._random = random.Random(seed)
        self._max_tokens = max_tokens
        self._end_bias = end_bias

    async def generate(self, request: Request) -> AsyncGenerator[TokenOutput, None]:
        self.requests.append(request)
        assert request.constraint is not None
        matcher = request.constraint.matcher()
        yield TokenOutput()
        for _ in range(self._max_tokens):
            await asyncio.sleep(0)
            token_id = self._choose(allowed(matcher))
            matcher.advance(token_id)
            if token_id in request.stop_token_ids:
                yield TokenOutput((token_id,), FinishReason.STOP)
                return
            yield TokenOutput((token_id,))
        yield TokenOutput((), FinishReason.LENGTH)

    def _choose(self, token_ids: list[int]) -> int:
        if EOS in token_ids and self._random.random() < self._end_bias:
            return EOS
        return self._random.choice(token_ids)
