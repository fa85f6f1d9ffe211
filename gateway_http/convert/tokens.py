"""Between the tokenizer's HTTP forms and the wire's."""

from msgspec import UNSET

from chatrpc.v1 import chat_pb2, model_service_pb2
from gateway_http.convert.messages import chat_message, first, json_text
from gateway_http.protocol import tokens as openai
from gateway_http.protocol.error import InvalidRequest, UnsupportedParameter

_INPUTS = ("prompt", "messages", "content")


def tokenize_request(
    request: openai.TokenizeRequest, model: str
) -> model_service_pb2.TokenizeRequest:
    """Raises InvalidRequest for what the wire cannot say."""
    given = [name for name in _INPUTS if getattr(request, name) is not None]
    if not given:
        raise InvalidRequest(
            "Missing required parameter: 'prompt', or 'messages' or 'content'.",
            "prompt",
            "missing_required_parameter",
        )
    if len(given) > 1:
        raise InvalidRequest(
            f"Send '{given[0]}' or '{given[1]}', not both.", given[1], "invalid_value"
        )
    _refuse_unserved(request, given[0])
    returns_token_bytes = bool(request.return_token_strs or request.with_pieces)
    if request.messages is not None:
        return model_service_pb2.TokenizeRequest(
            model=model,
            conversation=model_service_pb2.Conversation(
                messages=[
                    chat_message(m, f"messages[{i}]") for i, m in enumerate(request.messages)
                ],
                prompt=_prompt(request),
            ),
            return_token_bytes=returns_token_bytes,
        )
    adds_special_tokens = first(request.add_special_tokens, request.add_special)
    if adds_special_tokens is None and request.content is not None:
        adds_special_tokens = False
    return model_service_pb2.TokenizeRequest(
        model=model,
        text=first(request.prompt, request.content) or "",
        add_special_tokens=adds_special_tokens,
        return_token_bytes=returns_token_bytes,
    )


def names(request: openai.TokenizeRequest) -> dict[str, str]:
    """How this client calls what is a text on the wire."""
    return {"text": "content" if request.prompt is None else "prompt"}


def tokenize_answer(
    answer: model_service_pb2.TokenizeResponse, request: openai.TokenizeRequest
) -> openai.TokenizeAnswer:
    ids, told = list(answer.token_ids), answer.token_bytes
    pieces = [openai.TokenPiece(i, _piece(token)) for i, token in zip(ids, told, strict=False)]
    return openai.TokenizeAnswer(
        count=len(ids),
        max_model_len=answer.max_model_len,
        tokens=[*pieces] if request.with_pieces else [*ids],
        token_strs=[token.decode(errors="replace") for token in told]
        if request.return_token_strs
        else UNSET,
    )


def detokenize_answer(answer: model_service_pb2.DetokenizeResponse) -> openai.DetokenizeAnswer:
    return openai.DetokenizeAnswer(prompt=answer.text, content=answer.text)


def _refuse_unserved(request: openai.TokenizeRequest, given: str) -> None:
    for name in ("chat_template", "tools", "mm_processor_kwargs"):
        if getattr(request, name) not in (None, []):
            raise UnsupportedParameter(name)
    if request.parse_special is False:
        raise UnsupportedParameter("parse_special", "Special tokens in a text are those tokens.")
    of_messages = ("add_generation_prompt", "continue_final_message", "chat_template_kwargs")
    if given == "messages":
        # The template writes them.
        if first(request.add_special_tokens, request.add_special):
            raise UnsupportedParameter("add_special_tokens", "The chat template adds its own.")
        return
    for name in of_messages:
        if getattr(request, name) is not None:
            raise InvalidRequest(f"'{name}' needs 'messages'.", name, "invalid_value")


def _prompt(request: openai.TokenizeRequest) -> chat_pb2.PromptOptions:
    kwargs = request.chat_template_kwargs
    return chat_pb2.PromptOptions(
        chat_template_kwargs_json=None if kwargs is None else json_text(kwargs),
        add_generation_prompt=request.add_generation_prompt,
        continue_final_message=request.continue_final_message,
    )


def _piece(token: bytes) -> str | list[int]:
    try:
        return token.decode()
    except UnicodeDecodeError:
        return list(token)
