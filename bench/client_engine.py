"""A client of the bare engine in this process, without a wire and without text."""

import time
from contextlib import aclosing
from dataclasses import asdict

from bench.request import Record, Request, Transcript
from service.domain.chat import PromptOptions
from service.domain.engine import Engine
from service.domain.engine import Request as EngineRequest
from service.domain.model import Tokenizer
from service.domain.sampling import SamplingParams
from service.errors import ChatrpcError


class EngineClient:
    """A `bench.request.Client` of the engine. A piece has one byte for each token.

    Prompts are rendered and tokenized before their request is due.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer) -> None:
        self._engine = engine
        self._tokenizer = tokenizer

    async def send(self, transcript: Transcript) -> None:
        request = EngineRequest(
            prompt_token_ids=self._token_ids(transcript.request),
            sampling=SamplingParams(
                temperature=0.0, max_tokens=transcript.request.num_tokens, ignore_eos=True
            ),
        )
        note, clock = transcript.pieces.append, time.perf_counter
        transcript.due_s = max(transcript.due_s, clock())
        try:
            async with aclosing(self._engine.generate(request)) as outputs:
                async for output in outputs:
                    note((clock(), b"." * len(output.token_ids)))
        except ChatrpcError as error:
            transcript.error = f"{type(error).__name__}: {error}"

    def read(self, transcript: Transcript) -> Record:
        pieces = [(time_s, piece) for time_s, piece in transcript.pieces if piece]
        return Record(
            due_s=transcript.due_s,
            arrivals_s=tuple(time_s for time_s, _ in pieces),
            num_requested=transcript.request.num_tokens,
            num_output_tokens=sum(len(piece) for _, piece in pieces),
            num_prompt_tokens=len(self._token_ids(transcript.request)),
            error=transcript.error,
        )

    async def close(self) -> None:
        """Do nothing: the caller that started the engine stops it."""

    def _token_ids(self, request: Request) -> tuple[int, ...]:
        messages = [asdict(message) for message in request.messages]
        text = self._tokenizer.render_chat(messages, PromptOptions())
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))
