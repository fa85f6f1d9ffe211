"""The running service and gateway that the recorded requests need.

This is the only module of these tests that imports `service` or `gateway_http`. It uses only their
public constructors, so a change inside them needs no change of the other modules.
"""

import asyncio
import socket
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

from chatrpc_process.access.keys import load_keys
from chatrpc_process.access.secret import digest_of
from chatrpc_process.files.watched import Watched
from gateway_http.config import Settings
from gateway_http.server import Server as Gateway
from service.domain.backend import ServedModel
from service.domain.engine import EngineCapabilities, FinishReason, Request, TokenOutput
from service.domain.model import ChatFormats, LocalModel, ModelCard, ReasoningFormat, ToolFormat
from service.domain.sampling import SamplingParams
from service.errors import (
    ChatrpcError,
    ConstraintFailed,
    ContextLengthExceeded,
    DeadlinePassed,
    EngineDead,
    QueueFull,
    StepFailed,
)
from service.generation.local_backend import locally_served
from service.rpc.calls.authorization import Access
from service.rpc.calls.rpcs import SERVICE_NAMES
from service.rpc.server import Server
from service.rpc.serving.lifecycle import Lifecycle
from tests.fakes.embeddings import FakeEmbeddings
from tests.fakes.engine import FakeEngine
from tests.fakes.grammars import byte_grammars
from tests.fakes.tokenizer import EOS, ByteTokenizer
from tests.fakes.wait import until
from tests.wire.cases import SECRET, Failure, Setup

MODEL_CREATED = 1_700_000_000

_FAILURES: dict[Failure, Callable[[], Exception]] = {
    "queue_full": lambda: QueueFull(8, 1.5),
    "queue_share": lambda: QueueFull(2, 2.0, is_share=True),
    "engine_dead": EngineDead,
    "deadline": lambda: DeadlinePassed("The deadline passed before the request's turn came."),
    "step_failed": StepFailed,
    "constraint_failed": ConstraintFailed,
    "unforeseen": lambda: RuntimeError("what no client may read"),
}

_CARD = ModelCard(
    id="fake",
    aliases=("alias",),
    created=MODEL_CREATED,
    owned_by="tests",
    root="nowhere",
    max_model_len=1000,
    engine="fake",
    fingerprint="fp_fake",
)


@asynccontextmanager
async def running_service(setup: Setup) -> AsyncIterator[str]:
    """Run the gRPC service of `setup`. Yield its address."""
    if setup.state == "unreachable":
        with _closed_port() as port:
            yield f"127.0.0.1:{port}"
        return
    lifecycle = Lifecycle(SERVICE_NAMES)
    with _keys_file(setup) as keys:
        access = None if keys is None else Access(Watched(lambda: load_keys(keys), keys))
        server = Server(lifecycle, request_timeout_s=600, access=access)
        port = await server.start("127.0.0.1", 0)
        if setup.state != "starting":
            await lifecycle.serve(_model(setup))
        if setup.state == "draining":
            await lifecycle.drain(0, 600)
        try:
            yield f"127.0.0.1:{port}"
        finally:
            await server.stop()


@asynccontextmanager
async def running_gateway(setup: Setup, upstream: str) -> AsyncIterator[str]:
    """Run the gateway of `setup` in front of the service at `upstream`. Yield its URL."""
    with _keys_file(setup) as keys:
        settings = Settings(
            **{
                "port": 0,
                "upstream": upstream,
                "drain_timeout_s": 3,
                "sse_ping_interval_s": 600,
                "api_keys": keys,
                **setup.gateway,
            }
        )
        server = Gateway(settings)
        with server.bind() as listener:
            server.config.load()
            server.lifespan = server.config.lifespan_class(server.config)
            await server.startup(sockets=[listener])
            try:
                yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            finally:
                # `shutdown` would always sleep for 0.1 s.
                await until(lambda: not server.server_state.connections)
                for listening in server.servers:
                    listening.close()
                await server.lifespan.shutdown()


class _ScriptedEngine(FakeEngine):
    """Generates the outputs of a setup.

    Several requests, for example the prompts of one text completion, take turns: one step of each,
    in the order of the requests. So the outputs are the same in each run. Steps are not merged,
    since each is computed when its consumer requests it.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self._setup = setup
        self.capabilities = EngineCapabilities("fake", frozenset(setup.unsupported))
        self._waiting: list[object] = []  # requests in progress; the first has its turn
        self._turn_changed = asyncio.Event()
        self._num_sequences = 0
        if setup.rejection is not None:
            error = _FAILURES[setup.rejection]()
            assert isinstance(error, ChatrpcError)
            self.reserve_error = error

    async def generate(
        self, request: Request, *, is_reserved: bool = False
    ) -> AsyncGenerator[TokenOutput, int | None]:
        num_prompt_tokens = len(request.prompt_token_ids)
        if num_prompt_tokens >= self.max_model_len:
            raise ContextLengthExceeded(num_prompt_tokens, self.max_model_len)
        async with aclosing(super().generate(request, is_reserved=is_reserved)) as outputs:
            self.script = [*self._steps(request)]
            self._num_sequences += request.n
            turn = object()
            self._waiting.append(turn)
            try:
                ended = yield await anext(outputs)
                while True:
                    await self._wait_for(turn)
                    try:
                        ended = yield await outputs.asend(ended)
                    except StopAsyncIteration:
                        return
                    self._waiting.append(self._waiting.pop(0))
                    self._turn_changed.set()
            finally:
                self._waiting.remove(turn)
                self._turn_changed.set()

    async def _wait_for(self, turn: object) -> None:
        while self._waiting[0] is not turn:
            self._turn_changed.clear()
            await self._turn_changed.wait()

    def _steps(self, request: Request) -> Iterator[TokenOutput | Exception]:
        setup = self._setup
        sequences = [[*self._outputs(request, index)] for index in range(request.n)]
        rounds = max(map(len, sequences))
        for number in range(rounds):
            if setup.failure is not None and number == setup.fails_after:
                yield _FAILURES[setup.failure]()
            for sequence in sequences:
                if number < len(sequence):
                    yield sequence[number]

    def _outputs(self, request: Request, index: int) -> Iterator[TokenOutput]:
        setup, sampling = self._setup, request.sampling
        text = setup.outputs[(self._num_sequences + index) % len(setup.outputs)]
        room = self.max_model_len - len(request.prompt_token_ids)
        token_ids = [*text.encode(), EOS][: min(room, sampling.max_tokens or room)]
        reason = FinishReason.LENGTH
        for number, token_id in enumerate(token_ids, start=1):
            if token_id in request.stop_token_ids:
                token_ids, reason = token_ids[:number], FinishReason.STOP
        _check_constraint(request, token_ids)
        for start in range(0, len(token_ids), setup.tokens_per_step):
            end = start + setup.tokens_per_step
            yield TokenOutput(
                tuple(token_ids[start:end]),
                reason if end >= len(token_ids) else None,
                num_cached_tokens=setup.num_cached_tokens,
                index=index,
            )


def _check_constraint(request: Request, token_ids: list[int]) -> None:
    """Raise AssertionError if the grammar of a request does not allow the scripted output."""
    if request.constraint is None:
        return
    matcher = request.constraint.matcher()
    for number, token_id in enumerate(token_ids):
        allowed = matcher.allowed_tokens()
        assert allowed[token_id // 8] >> token_id % 8 & 1, (number, bytes(token_ids[:-1]))
        matcher.advance(token_id)


def _model(setup: Setup) -> ServedModel:
    served = locally_served(
        LocalModel(
            _CARD,
            ByteTokenizer(),
            _ScriptedEngine(setup),
            SamplingParams(),
            frozenset({EOS}),
            vocab_size=257,
            formats=ChatFormats(
                ToolFormat(setup.tools), reasoning=ReasoningFormat(setup.reasoning)
            ),
            grammars=byte_grammars() if setup.has_grammars else None,
        )
    )
    return replace(served, embeddings=FakeEmbeddings()) if setup.has_embeddings else served


@contextmanager
def _keys_file(setup: Setup) -> Iterator[Path | None]:
    if not setup.has_keys:
        yield None
        return
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "keys.toml"
        digest = digest_of(SECRET)
        entry = ["[[key]]", 'name = "one"', f'sha256 = "{digest}"', 'models = ["fake"]']
        path.write_text("\n".join([*entry, *setup.key_limits, ""]))
        yield path


@contextmanager
def _closed_port() -> Iterator[int]:
    """Yield a port that is bound but does not listen."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]
