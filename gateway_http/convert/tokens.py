"""Converts requests and responses of the tokenizer between JSON and the proto."""

from msgspec import UNSET

from chatrpc.v1 import chat_pb2, model_service_pb2
from gateway_http.convert.aliases import first_given
from gateway_http.convert.json_text import json_text
from gateway_http.convert.messages import chat_message
from gateway_http.convert.requests import EFFORTS, function_tool
from gateway_http.protocol import tokens as openai
from gateway_http.protocol.error import InvalidRequest, UnsupportedParameter

_INPUTS = ("prompt", "messages", "content")


def tokenize_request(request: openai.TokenizeRequest) -> model_service_pb2.TokenizeRequest:
    """Convert a body. The result has no model, since the service may use another name for it.

    Raises:
        InvalidRequest: The proto has no equivalent of a field, or fields contradict each other.
    """
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
    _check_supported(request, given[0])
    returns_token_bytes = bool(request.return_token_strs or request.with_pieces)
    if request.messages is not None:
        return model_service_pb2.TokenizeRequest(
            conversation=model_service_pb2.Conversation(
                messages=[
                    chat_message(m, f"messages[{i}]") for i, m in enumerate(request.messages)
                ],
                prompt=_prompt(request),
                tools=[function_tool(tool) for tool in request.tools or ()],
                reasoning_effort=EFFORTS[request.reasoning_effort],
            ),
            return_token_bytes=returns_token_bytes,
        )
    adds_special_tokens = first_given(request.add_special_tokens, request.add_special)
    if adds_special_tokens is None and request.content is not None:
        adds_special_tokens = False
    return model_service_pb2.TokenizeRequest(
        text=first_given(request.prompt, request.content) or "",
        add_special_tokens=adds_special_tokens,
        return_token_bytes=returns_token_bytes,
    )


def sent_names(request: openai.TokenizeRequest) -> dict[str, str]:
    """Return the name under which a client sent the text, by its name in errors of the service."""
    return {"text": "content" if request.prompt is None else "prompt"}


def tokenize_response(
    tokenized: model_service_pb2.TokenizeResponse, request: openai.TokenizeRequest
) -> openai.TokenizeResponse:
    """Convert the response to a request, with the fields that the request asks for."""
    ids, texts = list(tokenized.token_ids), tokenized.token_bytes
    pieces = [openai.TokenPiece(i, _piece(text)) for i, text in zip(ids, texts, strict=False)]
    return openai.TokenizeResponse(
        count=len(ids),
        max_model_len=tokenized.max_model_len,
        tokens=[*pieces] if request.with_pieces else [*ids],
        token_strs=[text.decode(errors="replace") for text in texts]
        if request.return_token_strs
        else UNSET,
    )


def detokenize_response(
    detokenized: model_service_pb2.DetokenizeResponse,
) -> openai.DetokenizeResponse:
    """Convert a response. The result has the text under the names of vLLM and of llama.cpp."""
    return openai.DetokenizeResponse(prompt=detokenized.text, content=detokenized.text)


def _check_supported(request: openai.TokenizeRequest, given: str) -> None:
    for name in ("chat_template", "mm_processor_kwargs"):
        if getattr(request, name) not in (None, []):
            raise UnsupportedParameter(name)
    if request.parse_special is False:
        raise UnsupportedParameter("parse_special", "Special tokens in a text are those tokens.")
    of_conversations = (
        "add_generation_prompt",
        "continue_final_message",
        "chat_template_kwargs",
        "tools",
        "reasoning_effort",
    )
    if given == "messages":
        if first_given(request.add_special_tokens, request.add_special):
            raise UnsupportedParameter("add_special_tokens", "The chat template adds its own.")
        return
    for name in of_conversations:
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
    """Return the text of a token, or its bytes if a character is incomplete."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return list(token)
