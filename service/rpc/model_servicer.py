"""ModelService: lists the served models, and tokenizes with their tokenizers."""

from collections.abc import Sequence
from typing import NamedTuple

from chatrpc.v1 import model_service_pb2, model_service_pb2_grpc
from chatrpc.v1.limits import LIMITS
from service.deadline import deadline_scope
from service.domain.backend import ModelSpec, RemoteTokenizer, ServedModel
from service.domain.chat import Message, PromptOptions, Tool
from service.domain.model import Tokenizer
from service.errors import (
    ContextLengthExceeded,
    InvalidField,
    MissingField,
    UnsupportedField,
    UnsupportedMethod,
)
from service.rpc.calls.caller import may_use_model
from service.rpc.calls.context import Context
from service.rpc.calls.deadline import deadline_of
from service.rpc.calls.work_pools import WorkPools
from service.rpc.decode.chat import check_fits
from service.rpc.decode.chat import messages as decode_messages
from service.rpc.decode.prompt import prompt_options
from service.rpc.decode.sampling import check_token_ids
from service.rpc.decode.tools import decoded_tools
from service.rpc.encode.model import model_proto
from service.rpc.serving.lifecycle import Lifecycle
from service.text.chat_template import render_prompt

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
MAX_TEXT_BYTES = 1 << 20  # tokenizing it takes about a second
MAX_TOKENS_WITH_BYTES = 100_000


class ModelServicer(model_service_pb2_grpc.ModelServiceServicer):
    """Describes the models of `lifecycle`, and tokenizes and detokenizes texts.

    Args:
        pools: Threads for tokenizing.
        request_timeout_s: Maximum duration of a request to a remote tokenizer, in seconds, even if
            the caller's deadline is later.
    """

    def __init__(self, lifecycle: Lifecycle, pools: WorkPools, request_timeout_s: float) -> None:
        self._lifecycle = lifecycle
        self._pools = pools
        self._request_timeout_s = request_timeout_s

    async def ListModels(
        self, request: model_service_pb2.ListModelsRequest, context: Context
    ) -> model_service_pb2.ListModelsResponse:
        """Return a page of models (https://google.aip.dev/158).

        A page token is the id of the last model on the previous page.
        """
        models = [
            model
            for model in self._lifecycle.models
            if may_use_model(model.card.id, *model.card.aliases)
        ]
        ids = [model.card.id for model in models]
        if request.page_token and request.page_token not in ids:
            raise InvalidField("page_token", "This page token was not returned by ListModels.")
        start = ids.index(request.page_token) + 1 if request.page_token else 0
        end = start + min(request.page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        return model_service_pb2.ListModelsResponse(
            models=[model_proto(model) for model in models[start:end]],
            next_page_token=ids[end - 1] if end < len(ids) else "",
        )

    async def GetModel(
        self, request: model_service_pb2.GetModelRequest, context: Context
    ) -> model_service_pb2.GetModelResponse:
        if not request.id:
            raise MissingField("id")
        model = self._lifecycle.find(request.id)
        return model_service_pb2.GetModelResponse(model=model_proto(model))

    async def Tokenize(
        self, request: model_service_pb2.TokenizeRequest, context: Context
    ) -> model_service_pb2.TokenizeResponse:
        if not request.model:
            raise MissingField("model")
        model = self._lifecycle.admit(request.model, context)
        if request.WhichOneof("input") is None:
            raise MissingField("input")
        if model.remote_tokenizer is not None:
            async with deadline_scope(deadline_of(context, self._request_timeout_s)):
                return await _remotely_tokenized(
                    request, model.backend.spec, model.remote_tokenizer
                )
        tokenizer = _tokenizer(model, "Tokenize")
        return await self._pools.text(_tokenized, request, model, tokenizer)

    async def Detokenize(
        self, request: model_service_pb2.DetokenizeRequest, context: Context
    ) -> model_service_pb2.DetokenizeResponse:
        if not request.model:
            raise MissingField("model")
        model = self._lifecycle.admit(request.model, context)
        max_size = LIMITS["DetokenizeRequest.token_ids"].max_size
        if len(request.token_ids) > max_size:
            raise InvalidField("token_ids", f"At most {max_size} token ids are taken.")
        if model.remote_tokenizer is not None:
            async with deadline_scope(deadline_of(context, self._request_timeout_s)):
                text = await model.remote_tokenizer.decode(request.token_ids)
            return model_service_pb2.DetokenizeResponse(text=text)
        tokenizer = _tokenizer(model, "Detokenize")
        return await self._pools.text(_detokenized, request, tokenizer)


def _tokenizer(model: ServedModel, method: str) -> Tokenizer:
    """Return a model's tokenizer.

    Raises:
        UnsupportedMethod: The model's backend has no tokenizer.
    """
    tokenizer = model.backend.tokenizer
    if tokenizer is None:
        raise UnsupportedMethod(method, model.card.id)
    return tokenizer


class _Conversation(NamedTuple):
    """A decoded conversation to tokenize."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]
    options: PromptOptions


def _conversation(proto: model_service_pb2.Conversation, spec: ModelSpec) -> _Conversation:
    """Decode a conversation.

    Raises:
        InvalidField or a subclass.
    """
    path = "conversation.messages"
    check_fits(proto.messages, spec, path=path)
    return _Conversation(
        decode_messages(proto.messages, path, takes_images=spec.takes_images),
        decoded_tools(proto.tools, "conversation.tools"),
        prompt_options(proto.prompt, proto.reasoning_effort),
    )


def _tokenized(
    request: model_service_pb2.TokenizeRequest, model: ServedModel, tokenizer: Tokenizer
) -> model_service_pb2.TokenizeResponse:
    """Tokenize a request's text. This runs on a thread, because a long text takes long."""
    spec = model.backend.spec
    if request.HasField("conversation"):
        conversation = _conversation(request.conversation, spec)
        token_ids: Sequence[int]
        if model.encode_chat is not None:
            token_ids = model.encode_chat(*conversation)
        elif conversation.tools:
            raise UnsupportedField("conversation.tools", "are not supported by this model.")
        else:
            token_ids = render_prompt(tokenizer, conversation.messages, conversation.options)
    else:
        _check_text(request.text, spec.max_model_len, tokenizer.max_token_chars)
        adds_special = not request.HasField("add_special_tokens") or request.add_special_tokens
        token_ids = tokenizer.encode(request.text, add_special_tokens=adds_special)
    token_bytes: list[bytes] = []
    if request.return_token_bytes:
        if len(token_ids) > MAX_TOKENS_WITH_BYTES:
            raise InvalidField(
                "return_token_bytes",
                f"The bytes of at most {MAX_TOKENS_WITH_BYTES} tokens are returned.",
            )
        token_bytes = [tokenizer.token_bytes(token_id) for token_id in token_ids]
    return model_service_pb2.TokenizeResponse(
        token_ids=token_ids, max_model_len=spec.max_model_len, token_bytes=token_bytes
    )


async def _remotely_tokenized(
    request: model_service_pb2.TokenizeRequest, spec: ModelSpec, tokenizer: RemoteTokenizer
) -> model_service_pb2.TokenizeResponse:
    """Tokenize a request's text at a remote service.

    Raises:
        UnsupportedField: The bytes of tokens are requested, which no service returns.
    """
    if request.return_token_bytes:
        raise UnsupportedField("return_token_bytes", "is not supported by this model.")
    if request.HasField("conversation"):
        token_ids = await tokenizer.encode_chat(*_conversation(request.conversation, spec))
    else:
        _check_num_bytes(request.text)
        adds_special = not request.HasField("add_special_tokens") or request.add_special_tokens
        token_ids = await tokenizer.encode(request.text, add_special_tokens=adds_special)
    return model_service_pb2.TokenizeResponse(token_ids=token_ids, max_model_len=spec.max_model_len)


def _detokenized(
    request: model_service_pb2.DetokenizeRequest, tokenizer: Tokenizer
) -> model_service_pb2.DetokenizeResponse:
    """Detokenize a request's tokens. This runs on a thread, because many tokens take long."""
    check_token_ids(request.token_ids, tokenizer.vocab_size, "token_ids")
    text = tokenizer.decode(list(request.token_ids), skip_special_tokens=False)
    return model_service_pb2.DetokenizeResponse(text=text)


def _check_text(text: str, max_model_len: int, max_token_chars: int) -> None:
    """Raise an error if a text is too long, before any work is done on it."""
    if len(text) >= max_token_chars * max_model_len:
        raise ContextLengthExceeded(len(text) // max_token_chars, max_model_len, "text", "text")
    _check_num_bytes(text)


def _check_num_bytes(text: str) -> None:
    if len(text.encode()) > MAX_TEXT_BYTES:
        raise InvalidField("text", f"At most {MAX_TEXT_BYTES} bytes of text are tokenized at once.")
