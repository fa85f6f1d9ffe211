"""A chatrpc service that follows a script, for tests of its clients.

    async with FakeService() as service:
        service.script = [Admit(), Delta("Hello"), Hold(), Delta(" world"), Finish()]

Every call runs the whole script, unless `turns` has a script for it. `Hold` waits for
`service.release()`. `calls` has all calls with their requests. `called` and `cancelled` wait for
them.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from chatrpc.v1 import (
    chat_pb2,
    chat_service_pb2,
    chat_service_pb2_grpc,
    classification_service_pb2,
    classification_service_pb2_grpc,
    completion_pb2,
    completion_service_pb2,
    completion_service_pb2_grpc,
    decision_service_pb2,
    decision_service_pb2_grpc,
    embedding_service_pb2,
    embedding_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
)
from tests.fakes.embeddings import vector_of
from tests.fakes.wait import failsafe

MODEL = "org/tiny"
CREATED = 1_700_000_000
PROMPT_TOKENS = 7
EOS = 7


@dataclass(frozen=True)
class Admit:
    """Send the initial metadata. After it the call cannot be rejected any more."""


@dataclass(frozen=True)
class Delta:
    """Send a delta."""

    text: str = ""
    index: int = 0
    num_tokens: int = 1
    delta: chat_pb2.Delta | None = None
    logprobs: tuple[chat_pb2.TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Piece:
    """Send this delta of a text completion."""

    delta: completion_pb2.CompletionChoiceDelta


@dataclass(frozen=True)
class Finish:
    """End a choice."""

    reason: chat_pb2.FinishReason.ValueType = chat_pb2.FINISH_REASON_STOP
    index: int = 0
    matched_stop: chat_pb2.MatchedStop | None = None


@dataclass(frozen=True)
class Hold:
    """Wait until the service is released or the call is cancelled."""


@dataclass(frozen=True)
class Fail:
    """End the call with a status and the details that the service adds to it.

    If the message begins with the field, the rest of it is the description of the field.
    """

    code: grpc.StatusCode
    message: str = "The service says no."
    reason: str = ""
    field: str = ""
    retry_after_s: float | None = None

    async def abort(self, context: Any) -> None:
        details: list[Message] = []
        if self.reason:
            details.append(error_details_pb2.ErrorInfo(reason=self.reason, domain="chatrpc"))
        if self.field:
            violation = error_details_pb2.BadRequest.FieldViolation(
                field=self.field, description=self.message.removeprefix(f"{self.field} ")
            )
            details.append(error_details_pb2.BadRequest(field_violations=[violation]))
        if self.retry_after_s is not None:
            delay = duration_pb2.Duration()
            delay.FromMilliseconds(int(self.retry_after_s * 1000))
            details.append(error_details_pb2.RetryInfo(retry_delay=delay))
        status = status_pb2.Status(
            code=getattr(code_pb2, self.code.name),
            message=self.message,
            details=map(_pack, details),
        )
        await context.abort_with_status(rpc_status.to_status(status))


Step = Admit | Delta | Piece | Finish | Hold | Fail

HELLO: list[Step] = [Admit(), Delta("Hello"), Delta(" world"), Finish()]


def reasoning(text: str) -> Delta:
    """Return a delta of reasoning."""
    return Delta(delta=chat_pb2.Delta(reasoning_content=text))


def tool_call(arguments: str, call_id: str = "", name: str = "", index: int = 0) -> Delta:
    """Return a delta of a tool call's arguments. The first delta of a call has its id and name."""
    function = chat_pb2.FunctionCall(name=name, arguments_json=arguments)
    call = chat_pb2.ToolCall(id=call_id, index=index, function=function)
    return Delta(delta=chat_pb2.Delta(tool_calls=[call]))


@dataclass
class Call:
    """A call that the service has received."""

    params: Any  # ChatCompletionParams, CompletionParams, or the whole request of another method
    metadata: dict[str, str | bytes]
    time_remaining_s: float | None
    is_cancelled: bool = False


@dataclass
class FakeService(
    chat_service_pb2_grpc.ChatServiceServicer,
    classification_service_pb2_grpc.ClassificationServiceServicer,
    completion_service_pb2_grpc.CompletionServiceServicer,
    decision_service_pb2_grpc.DecisionServiceServicer,
    embedding_service_pb2_grpc.EmbeddingServiceServicer,
    model_service_pb2_grpc.ModelServiceServicer,
):
    """All services of `chatrpc.v1`, and Health, on a free port of 127.0.0.1."""

    script: list[Step] = field(default_factory=lambda: list(HELLO))
    turns: list[list[Step]] = field(default_factory=list)
    """The scripts of the next calls, in order. Each is removed when its call begins."""
    num_rejections: int = 0
    """The number of first calls that end with `rejection` and do not run the script."""
    rejection: Fail = Fail(grpc.StatusCode.UNAVAILABLE, "Full.", "QUEUE_FULL")
    completion: chat_pb2.ChatCompletion | None = None
    """The unary response. If it is None, it is made from the script."""
    models: list[model_service_pb2.Model] = field(default_factory=lambda: [model()])
    model_error: Fail | None = None
    """The error of GetModel. If it is None, GetModel returns a model."""
    holds_tokens: bool = False
    """True if the methods that generate nothing wait until released or cancelled, except those that
    describe models."""
    embedding_error: Fail | None = None
    """The error of CreateEmbeddings. If it is None, CreateEmbeddings returns embeddings."""
    decision_error: Fail | None = None
    """The error of CreateDecision. If it is None, CreateDecision returns probabilities."""
    classification_error: Fail | None = None
    """The error of Classify, Score and Rerank. If it is None, they return scores."""
    calls: list[Call] = field(default_factory=list)
    port: int = 0

    async def __aenter__(self) -> Self:
        self._changed = asyncio.Event()
        self._released = asyncio.Event()
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self._health = health.aio.HealthServicer()
        chat_service_pb2_grpc.add_ChatServiceServicer_to_server(self, self._server)
        completion_service_pb2_grpc.add_CompletionServiceServicer_to_server(self, self._server)
        classification_service_pb2_grpc.add_ClassificationServiceServicer_to_server(
            self, self._server
        )
        decision_service_pb2_grpc.add_DecisionServiceServicer_to_server(self, self._server)
        embedding_service_pb2_grpc.add_EmbeddingServiceServicer_to_server(self, self._server)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(self, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        await self.set_ready(True)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def stop(self) -> None:
        await self._server.stop(0)

    async def set_ready(self, ready: bool) -> None:
        status = health_pb2.HealthCheckResponse
        for name in ("readiness", MODEL):
            await self._health.set(name, status.SERVING if ready else status.NOT_SERVING)

    def release(self) -> None:
        self._released.set()

    async def called(self, times: int = 1) -> None:
        """Wait until this many calls have arrived."""
        await self._until(lambda: len(self.calls) >= times)

    async def cancelled(self, times: int = 1) -> None:
        """Wait until this many calls have been cancelled."""
        await self._until(lambda: sum(call.is_cancelled for call in self.calls) >= times)

    async def CreateChatCompletion(  # noqa: N802  # the name of the RPC
        self, request: chat_service_pb2.CreateChatCompletionRequest, context: Any
    ) -> chat_service_pb2.CreateChatCompletionResponse:
        chunks = [chunk async for chunk in self._run(request.params, context)]
        completion = self.completion or _whole(chunks)
        return chat_service_pb2.CreateChatCompletionResponse(completion=completion)

    async def StreamChatCompletion(  # noqa: N802
        self, request: chat_service_pb2.StreamChatCompletionRequest, context: Any
    ) -> AsyncIterator[chat_service_pb2.StreamChatCompletionResponse]:
        async with aclosing(self._run(request.params, context)) as chunks:
            async for chunk in chunks:
                yield chat_service_pb2.StreamChatCompletionResponse(chunk=chunk)

    async def CreateCompletion(  # noqa: N802
        self, request: completion_service_pb2.CreateCompletionRequest, context: Any
    ) -> completion_service_pb2.CreateCompletionResponse:
        chunks = [_text(chunk) async for chunk in self._run(request.params, context)]
        return completion_service_pb2.CreateCompletionResponse(completion=_whole_text(chunks))

    async def StreamCompletion(  # noqa: N802
        self, request: completion_service_pb2.StreamCompletionRequest, context: Any
    ) -> AsyncIterator[completion_service_pb2.StreamCompletionResponse]:
        async with aclosing(self._run(request.params, context)) as chunks:
            async for chunk in chunks:
                yield completion_service_pb2.StreamCompletionResponse(chunk=_text(chunk))

    async def CreateEmbeddings(  # noqa: N802
        self, request: embedding_service_pb2.CreateEmbeddingsRequest, context: Any
    ) -> embedding_service_pb2.CreateEmbeddingsResponse:
        """Return the embedding that `vector_of` makes from the length of each input."""
        await self._hold_tokens(self._note(request, context))
        if self.embedding_error is not None:
            await self.embedding_error.abort(context)
        lengths = [len(text) for text in request.text_inputs.texts]
        lengths += [len(each.ids) for each in request.token_inputs.token_ids]
        return embedding_service_pb2.CreateEmbeddingsResponse(
            embeddings=[
                embedding_service_pb2.Embedding(
                    index=i, values=vector_of(length, request.dimensions or 3)
                )
                for i, length in enumerate(lengths)
            ],
            model=request.model,
            usage=embedding_service_pb2.EmbeddingUsage(prompt_tokens=sum(lengths)),
        )

    async def Classify(  # noqa: N802
        self, request: classification_service_pb2.ClassifyRequest, context: Any
    ) -> classification_service_pb2.ClassifyResponse:
        """Return the labels "short" and "long" with scores by the length of each input."""
        await self._hold_tokens(self._note(request, context))
        if self.classification_error is not None:
            await self.classification_error.abort(context)
        lengths = [len(text) for text in request.text_inputs.texts]
        lengths += [len(each.ids) for each in request.token_inputs.token_ids]
        return classification_service_pb2.ClassifyResponse(
            classifications=[
                classification_service_pb2.Classification(
                    index=i, label="short", scores=[1, length]
                )
                for i, length in enumerate(lengths)
            ],
            labels=["short", "long"],
            model=request.model,
            usage=classification_service_pb2.ClassificationUsage(prompt_tokens=sum(lengths)),
        )

    async def Score(  # noqa: N802
        self, request: classification_service_pb2.ScoreRequest, context: Any
    ) -> classification_service_pb2.ScoreResponse:
        """Return the length of each pair as its score."""
        await self._hold_tokens(self._note(request, context))
        if self.classification_error is not None:
            await self.classification_error.abort(context)
        scores = [len(pair.query) + len(pair.document) for pair in request.pairs]
        return classification_service_pb2.ScoreResponse(
            scores=scores,
            model=request.model,
            usage=classification_service_pb2.ClassificationUsage(prompt_tokens=sum(scores)),
        )

    async def Rerank(  # noqa: N802
        self, request: classification_service_pb2.RerankRequest, context: Any
    ) -> classification_service_pb2.RerankResponse:
        """Return the documents by descending length, which is their score."""
        await self._hold_tokens(self._note(request, context))
        if self.classification_error is not None:
            await self.classification_error.abort(context)
        lengths = [len(document) for document in request.documents]
        ranked = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        return classification_service_pb2.RerankResponse(
            results=[
                classification_service_pb2.RerankResult(index=i, relevance_score=lengths[i])
                for i in ranked[: request.top_n or None]
            ],
            model=request.model,
            usage=classification_service_pb2.ClassificationUsage(prompt_tokens=sum(lengths)),
        )

    async def CreateDecision(  # noqa: N802
        self, request: decision_service_pb2.CreateDecisionRequest, context: Any
    ) -> decision_service_pb2.CreateDecisionResponse:
        """Return probabilities in the ratios 1, 2, 3 and so on."""
        await self._hold_tokens(self._note(request, context))
        if self.decision_error is not None:
            await self.decision_error.abort(context)
        return decision_service_pb2.CreateDecisionResponse(
            answers=map(_decided, request.questions),
            model=request.model,
            usage=chat_pb2.Usage(
                prompt_tokens=PROMPT_TOKENS * len(request.questions),
                completion_tokens=2,
                cached_prompt_tokens=3,
            ),
        )

    async def ListModels(  # noqa: N802
        self, request: model_service_pb2.ListModelsRequest, context: Any
    ) -> model_service_pb2.ListModelsResponse:
        """Return one model a page, to detect clients that read only the first page."""
        start = int(request.page_token or 0)
        after = start + 1 if start + 1 < len(self.models) else ""
        return model_service_pb2.ListModelsResponse(
            models=self.models[start : start + 1], next_page_token=str(after)
        )

    async def GetModel(  # noqa: N802
        self, request: model_service_pb2.GetModelRequest, context: Any
    ) -> model_service_pb2.GetModelResponse:
        if self.model_error is not None:
            await self.model_error.abort(context)
        for served in self.models:
            if request.id in {served.id, *served.aliases}:
                return model_service_pb2.GetModelResponse(model=served)
        missing = Fail(grpc.StatusCode.NOT_FOUND, "No such model.", "MODEL_NOT_FOUND")
        await missing.abort(context)
        raise AssertionError("abort raises")

    async def Tokenize(  # noqa: N802
        self, request: model_service_pb2.TokenizeRequest, context: Any
    ) -> model_service_pb2.TokenizeResponse:
        """Tokenize text into bytes. The prompt of a conversation is its texts."""
        await self._hold_tokens(self._note(request, context))
        text = request.text or "".join(
            part.text for message in request.conversation.messages for part in message.content
        )
        ids = [*text.encode(), *([EOS] if request.add_special_tokens else [])]
        return model_service_pb2.TokenizeResponse(
            token_ids=ids,
            max_model_len=2048,
            token_bytes=[bytes([i]) for i in ids] if request.return_token_bytes else [],
        )

    async def Detokenize(  # noqa: N802
        self, request: model_service_pb2.DetokenizeRequest, context: Any
    ) -> model_service_pb2.DetokenizeResponse:
        await self._hold_tokens(self._note(request, context))
        if any(token_id > 255 for token_id in request.token_ids):
            fail = Fail(grpc.StatusCode.INVALID_ARGUMENT, "No.", "INVALID_FIELD", "token_ids[0]")
            await fail.abort(context)
        text = bytes(request.token_ids).decode(errors="replace")
        return model_service_pb2.DetokenizeResponse(text=text)

    async def _hold_tokens(self, call: Call) -> None:
        if not self.holds_tokens:
            return
        try:
            await self._released.wait()
        except asyncio.CancelledError:
            call.is_cancelled = True
            self._changed.set()
            raise

    def _note(self, params: Any, context: Any) -> Call:
        call = Call(params, dict(context.invocation_metadata()), context.time_remaining())
        self.calls.append(call)
        self._changed.set()
        return call

    async def _run(self, params: Any, context: Any) -> AsyncGenerator[Any, None]:
        call = self._note(params, context)
        try:
            if len(self.calls) <= self.num_rejections:
                await self.rejection.abort(context)
            script = self.turns.pop(0) if self.turns else self.script
            async for chunk in self._steps(script, context):
                yield chunk
        # GeneratorExit is raised if the call is cancelled in a write.
        except (asyncio.CancelledError, GeneratorExit):
            call.is_cancelled = True
            self._changed.set()
            raise

    async def _steps(self, script: list[Step], context: Any) -> AsyncIterator[Any]:
        num_tokens = 0
        head = _head()
        for step in script:
            match step:
                case Admit():
                    await context.send_initial_metadata((("chatrpc-admitted", "1"),))
                case Hold():
                    await self._released.wait()
                case Fail():
                    await step.abort(context)
                case Piece():
                    yield step
                case Delta() | Finish():
                    num_tokens += step.num_tokens if isinstance(step, Delta) else 0
                    head.choices.append(_choice(step))
                    yield head
                    head = chat_pb2.ChatCompletionChunk()
        usage = chat_pb2.Usage(prompt_tokens=PROMPT_TOKENS, completion_tokens=num_tokens)
        yield chat_pb2.ChatCompletionChunk(usage=usage)

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with failsafe():
            while not condition():
                self._changed.clear()
                await self._changed.wait()


def model(model_id: str = MODEL, aliases: tuple[str, ...] = ()) -> model_service_pb2.Model:
    return model_service_pb2.Model(
        id=model_id,
        create_time=Timestamp(seconds=CREATED),
        owned_by="tests",
        max_model_len=2048,
        aliases=aliases,
        root="hub/tiny",
        engine="fake",
        capabilities=model_service_pb2.ModelCapabilities(
            unsupported_fields=["priority", "sampling.bad_words", "response_format.regex"],
            input_modalities=[chat_pb2.MODALITY_TEXT, chat_pb2.MODALITY_IMAGE],
            embeddings=True,
            tokenization=True,
            structured_outputs=True,
            max_logprobs=5,
            is_batch_invariant=True,
            tasks=[model_service_pb2.MODEL_TASK_GENERATE, model_service_pb2.MODEL_TASK_EMBED],
            output_modalities=[chat_pb2.MODALITY_TEXT],
            tools=True,
            reasoning=False,
        ),
        max_output_tokens=2047,
        quantization="int8",
    )


def _head() -> chat_pb2.ChatCompletionChunk:
    return chat_pb2.ChatCompletionChunk(
        id="chatcmpl-1",
        create_time=Timestamp(seconds=CREATED),
        model=MODEL,
        system_fingerprint="fp_1",
    )


def _choice(step: Delta | Finish) -> chat_pb2.ChoiceDelta:
    if isinstance(step, Finish):
        return chat_pb2.ChoiceDelta(
            index=step.index, finish_reason=step.reason, matched_stop=step.matched_stop
        )
    return chat_pb2.ChoiceDelta(
        index=step.index,
        delta=step.delta or chat_pb2.Delta(content=step.text),
        num_tokens=step.num_tokens,
        logprobs=step.logprobs,
    )


def _decided(
    question: decision_service_pb2.DecisionQuestion,
) -> decision_service_pb2.DecisionAnswer:
    num_options = len(question.choice.choices) or len(question.score.levels) or 2
    whole = num_options * (num_options + 1) / 2
    options = [
        decision_service_pb2.OptionProbability(probability=(i + 1) / whole, logprob=-1)
        for i in range(num_options)
    ]
    answer = decision_service_pb2.DecisionAnswer(name=question.name or None)
    match question.WhichOneof("kind"):
        case "predicate":
            answer.predicate.probability = options[0].probability
        case "choice":
            answer.choice.index = num_options - 1
            answer.choice.confidence = 0.5
            answer.choice.probabilities.extend(options)
        case "score":
            answer.score.score = 0.25
            answer.score.confidence = 0.5
            answer.score.probabilities.extend(options)
    return answer


def _whole(chunks: list[chat_pb2.ChatCompletionChunk]) -> chat_pb2.ChatCompletion:
    """Return the deltas of choice 0 as a unary response."""
    head, deltas = chunks[0], [delta for chunk in chunks for delta in chunk.choices]
    calls: dict[int, chat_pb2.ToolCall] = {}
    for piece in (piece for each in deltas for piece in each.delta.tool_calls):
        call = calls.setdefault(piece.index, chat_pb2.ToolCall(index=piece.index))
        arguments = call.function.arguments_json + piece.function.arguments_json
        call.MergeFrom(piece)
        call.function.arguments_json = arguments
    text = "".join(each.delta.content for each in deltas)
    return chat_pb2.ChatCompletion(
        id=head.id,
        create_time=head.create_time,
        model=head.model,
        system_fingerprint=head.system_fingerprint,
        choices=[
            chat_pb2.Choice(
                message=chat_pb2.ChatMessage(
                    role=chat_pb2.ROLE_ASSISTANT,
                    content=[chat_pb2.ContentPart(text=text)],
                    reasoning_content="".join(each.delta.reasoning_content for each in deltas),
                    tool_calls=calls.values(),
                ),
                finish_reason=deltas[-1].finish_reason or chat_pb2.FINISH_REASON_STOP,
                matched_stop=deltas[-1].matched_stop,
            )
        ],
        usage=chunks[-1].usage,
    )


def _text(chunk: chat_pb2.ChatCompletionChunk | Piece) -> completion_pb2.CompletionChunk:
    """Convert a chunk of a chat completion to one of a text completion."""
    if isinstance(chunk, Piece):
        return completion_pb2.CompletionChunk(
            id="cmpl-1", create_time=Timestamp(seconds=CREATED), model=MODEL, choices=[chunk.delta]
        )
    return completion_pb2.CompletionChunk(
        id=chunk.id and "cmpl-1",
        create_time=chunk.create_time,
        model=chunk.model,
        choices=[
            completion_pb2.CompletionChoiceDelta(
                index=delta.index,
                text=delta.delta.content,
                finish_reason=delta.finish_reason,
                logprobs=delta.logprobs,
                num_tokens=delta.num_tokens,
                matched_stop=delta.matched_stop if delta.HasField("matched_stop") else None,
            )
            for delta in chunk.choices
        ],
        usage=chunk.usage if chunk.HasField("usage") else None,
        system_fingerprint=chunk.system_fingerprint,
    )


def _whole_text(chunks: list[completion_pb2.CompletionChunk]) -> completion_pb2.Completion:
    """Concatenate the deltas of each choice."""
    choices: dict[int, completion_pb2.CompletionChoice] = {}
    for chunk in chunks:
        for delta in chunk.choices:
            choice = choices.setdefault(
                delta.index, completion_pb2.CompletionChoice(index=delta.index)
            )
            text = choice.text + delta.text
            choice.MergeFrom(
                completion_pb2.CompletionChoice(
                    index=delta.index,
                    finish_reason=delta.finish_reason,
                    logprobs=delta.logprobs,
                    token_ids=delta.token_ids,
                    prompt_token_ids=delta.prompt_token_ids,
                    prompt_tokens=delta.prompt_tokens,
                    text_offsets=delta.text_offsets,
                )
            )
            choice.text = text
    return completion_pb2.Completion(
        id=chunks[0].id,
        create_time=chunks[0].create_time,
        model=chunks[0].model,
        system_fingerprint=chunks[0].system_fingerprint,
        choices=choices.values(),
        usage=chunks[-1].usage,
    )


def _pack(detail: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
