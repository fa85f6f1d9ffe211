"""Converts decisions between OpenAI's JSON and the proto."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from chatrpc.v1 import chat_pb2, decision_service_pb2
from gateway_http.convert.messages import ROLES
from gateway_http.protocol import decisions as openai
from gateway_http.protocol.error import InvalidRequest, UnsupportedParameter

# OpenAI's limits of a part with JSON.
MAX_JSON_DEPTH = 32
MAX_JSON_VALUES = 10_000
MAX_JSON_BYTES = 256 << 10

# The parts of the messages of a role.
_PARTS: Mapping[str, tuple[type, ...]] = {
    "system": (openai.DecisionInputText,),
    "developer": (openai.DecisionInputText,),
    "user": (openai.DecisionInputText, openai.DecisionInputImage, openai.DecisionInputJson),
    "assistant": (openai.DecisionOutputText, openai.DecisionRefusal),
}
# The fields of an item's type: the required ones and the others.
_FIELDS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "message": (("role", "content"), ("phase",)),
    "function_call": (("call_id", "name", "arguments"), ("namespace",)),
    "function_call_output": (("call_id", "output"), ()),
    "custom_tool_call": (("call_id", "name", "input"), ("namespace",)),
    "custom_tool_call_output": (("call_id", "output"), ()),
}
_COMMON_FIELDS = ("type", "id", "status")


def decision_request(
    body: openai.DecisionRequest,
) -> decision_service_pb2.CreateDecisionRequest:
    """Convert a body. The result has no model: the service may have another name for it.

    Raises:
        InvalidRequest: The proto has no equivalent of a field.
    """
    return decision_service_pb2.CreateDecisionRequest(
        messages=_messages(body.input),
        questions=[
            _question(question, f"questions[{i}]") for i, question in enumerate(body.questions)
        ],
        priority=body.priority,
        cache_salt=body.cache_salt,
        safety_identifier=body.safety_identifier,
        prompt_cache_key=body.prompt_cache_key,
    )


def sent_names(body: openai.DecisionRequest) -> dict[str, str]:
    """Return the client's paths of the input, by their paths in OpenAI's chat API.

    See `gateway_http.protocol.params.param_of`. A path comes before the beginnings of it.
    """
    if isinstance(body.input, str):
        return {"messages[0]": "input", "messages": "input"}
    names: dict[str, str] = {}
    for i, group in enumerate(_grouped(body.input)):
        for k, call in enumerate(group[1:] if _is_message(body.input[group[0]]) else group):
            names[f"messages[{i}].tool_calls[{k}].function.arguments"] = f"input[{call}].arguments"
            names[f"messages[{i}].tool_calls[{k}]"] = f"input[{call}]"
        first = f"input[{group[0]}]"
        if body.input[group[0]].output is not None:
            names[f"messages[{i}].content"] = f"{first}.output"
            names[f"messages[{i}].tool_call_id"] = f"{first}.call_id"
        names[f"messages[{i}]"] = first
    names["messages"] = "input"
    return names


def decision_response(
    response: decision_service_pb2.CreateDecisionResponse,
    model: str,
    body: openai.DecisionRequest,
) -> openai.Decision:
    """Convert a response.

    Args:
        response: The response.
        model: The name of its model for clients.
        body: The body of its request.
    """
    usage = response.usage
    return openai.Decision(
        model=model,
        answers=[
            _answer(answer, question)
            for answer, question in zip(response.answers, body.questions, strict=True)
        ],
        usage=openai.DecisionUsage(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=openai.DecisionInputTokensDetails(usage.cached_prompt_tokens),
            output_tokens=usage.completion_tokens,
            output_tokens_details=openai.DecisionOutputTokensDetails(),
            total_tokens=usage.prompt_tokens + usage.completion_tokens,
        ),
    )


def _answer(
    answer: decision_service_pb2.DecisionAnswer, question: openai.Question
) -> openai.Answer:
    match question:
        case openai.PredicateQuestion():
            return openai.PredicateAnswer(
                name=question.name, probability=answer.predicate.probability
            )
        case openai.ChoiceQuestion():
            choice = answer.choice
            return openai.ChoiceAnswer(
                name=question.name,
                choice=question.choices[choice.index].value,
                confidence=choice.confidence,
                probabilities=[
                    openai.ChoiceProbability(option.value, each.probability)
                    for option, each in zip(question.choices, choice.probabilities, strict=True)
                ],
            )
        case openai.ScoreQuestion():
            score = answer.score
            return openai.ScoreAnswer(
                name=question.name,
                score=score.score,
                confidence=score.confidence,
                probabilities=[
                    openai.ScoreProbability(index, level.label, each.probability)
                    for index, (level, each) in enumerate(
                        zip(question.levels, score.probabilities, strict=True)
                    )
                ],
            )


def _is_message(item: openai.DecisionInputItem) -> bool:
    return item.type in {None, "message"}


def _is_call(item: openai.DecisionInputItem) -> bool:
    return item.type in {"function_call", "custom_tool_call"}


def _grouped(items: Sequence[openai.DecisionInputItem]) -> Iterator[list[int]]:
    """Yield the indices of the items of each message of the proto.

    Tool calls belong to the message of the assistant before them. Without one, those in a row are
    a message.
    """
    group: list[int] = []
    for i, item in enumerate(items):
        is_open = bool(group) and (_is_call(items[group[0]]) or items[group[0]].role == "assistant")
        if group and not (is_open and _is_call(item)):
            yield group
            group = []
        group.append(i)
    yield group


def _messages(given: str | Sequence[openai.DecisionInputItem]) -> list[chat_pb2.ChatMessage]:
    if isinstance(given, str):
        if not given:
            raise InvalidRequest("Invalid 'input': the input is empty.", "input", "invalid_value")
        part = chat_pb2.ContentPart(text=given)
        return [chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, content=[part])]
    for i, item in enumerate(given):
        _check_fields(item, f"input[{i}]")
    _check_call_ids(given)
    return [_message([(f"input[{i}]", given[i]) for i in group]) for group in _grouped(given)]


def _check_fields(item: openai.DecisionInputItem, param: str) -> None:
    """Check that an item has the fields of its type and no others."""
    kind = item.type or "message"
    required, optional = _FIELDS[kind]
    for name in item.__struct_fields__:
        is_given = getattr(item, name) is not None
        if name in required and not is_given:
            raise InvalidRequest(
                f"Missing required parameter: '{param}.{name}'.",
                f"{param}.{name}",
                "missing_required_parameter",
            )
        if is_given and name not in (*required, *optional, *_COMMON_FIELDS):
            raise InvalidRequest(
                f"Invalid '{param}.{name}': an item of the type '{kind}' has no such field.",
                f"{param}.{name}",
                "unknown_parameter",
            )


def _check_call_ids(items: Sequence[openai.DecisionInputItem]) -> None:
    """Check that each output belongs to a call before it, of the same kind."""
    calls: set[tuple[str, str | None]] = set()
    for i, item in enumerate(items):
        if _is_call(item):
            calls.add((f"{item.type}_output", item.call_id))
        elif item.output is not None and (item.type, item.call_id) not in calls:
            raise InvalidRequest(
                f"Invalid 'input[{i}].call_id': no call before it has this id.",
                f"input[{i}].call_id",
                "invalid_value",
            )


def _message(group: Sequence[tuple[str, openai.DecisionInputItem]]) -> chat_pb2.ChatMessage:
    param, first = group[0]
    if first.output is not None:
        return chat_pb2.ChatMessage(
            role=chat_pb2.ROLE_TOOL,
            tool_call_id=first.call_id or "",
            content=_parts(first.output, f"{param}.output"),
        )
    message = chat_pb2.ChatMessage(role=chat_pb2.ROLE_ASSISTANT)
    if first.content is not None:
        role = first.role or ""
        message.role = ROLES[role]
        parts = [first.content] if isinstance(first.content, str) else first.content
        for i, part in enumerate(parts):
            if not isinstance(part, (str, *_PARTS[role])):
                path = f"{param}.content[{i}]"
                raise InvalidRequest(
                    f"Invalid value for '{path}': a message of the role '{role}' has no parts of "
                    f"the type '{_tag(part)}'.",
                    path,
                    "invalid_value",
                )
        message.content.extend(_parts(first.content, f"{param}.content"))
        message.refusal = "\n".join(
            p.refusal for p in parts if isinstance(p, openai.DecisionRefusal)
        )
    for _, call in group:
        if _is_call(call):
            message.tool_calls.append(_tool_call(call, len(message.tool_calls)))
    return message


def _tool_call(call: openai.DecisionInputItem, index: int) -> chat_pb2.ToolCall:
    arguments = call.arguments
    if arguments is None:
        arguments = json.dumps({"input": call.input}, ensure_ascii=False)
    name = f"{call.namespace}.{call.name}" if call.namespace else call.name
    return chat_pb2.ToolCall(
        id=call.call_id or "",
        index=index,
        function=chat_pb2.FunctionCall(name=name or "", arguments_json=arguments),
    )


def _parts(content: str | Sequence[openai.ContentPart], param: str) -> list[chat_pb2.ContentPart]:
    """Convert a content, without its refusals. Each part after the first begins on a new line."""
    if isinstance(content, str):
        return [chat_pb2.ContentPart(text=content)]
    parts: list[chat_pb2.ContentPart] = []
    for i, part in enumerate(content):
        if isinstance(part, openai.DecisionInputImage):
            detail = "" if part.detail in {None, "original"} else part.detail
            image = chat_pb2.ImageContent(url=part.image_url, detail=detail)
            parts.append(chat_pb2.ContentPart(image=image))
        elif not isinstance(part, openai.DecisionRefusal):
            text = _text(part, f"{param}[{i}]")
            parts.append(chat_pb2.ContentPart(text=f"\n{text}" if parts else text))
    return parts


def _question(question: openai.Question, param: str) -> decision_service_pb2.DecisionQuestion:
    proto = decision_service_pb2.DecisionQuestion(
        name=question.name,
        instructions=_instructions(question.instructions, f"{param}.instructions"),
    )
    match question:
        case openai.PredicateQuestion():
            proto.predicate.SetInParent()
        case openai.ChoiceQuestion():
            proto.choice.choices.extend(
                decision_service_pb2.DecisionChoice(
                    boolean=choice.value,
                    description=choice.description,
                )
                if isinstance(choice.value, bool)
                else decision_service_pb2.DecisionChoice(
                    text=choice.value, description=choice.description
                )
                for choice in question.choices
            )
            proto.choice.SetInParent()
        case openai.ScoreQuestion():
            proto.score.levels.extend(
                decision_service_pb2.DecisionLevel(label=level.label, description=level.description)
                for level in question.levels
            )
            proto.score.SetInParent()
    return proto


def _instructions(given: str | Iterable[openai.QuestionPart], param: str) -> str:
    if isinstance(given, str):
        return given
    texts = []
    for i, part in enumerate(given):
        if isinstance(part, openai.DecisionInputImage):
            raise UnsupportedParameter(f"{param}[{i}]", "Instructions are texts and JSON.")
        texts.append(_text(part, f"{param}[{i}]"))
    return "\n".join(texts)


def _text(
    part: openai.DecisionInputText | openai.DecisionOutputText | openai.DecisionInputJson,
    param: str,
) -> str:
    if isinstance(part, openai.DecisionInputJson):
        return _compact_json(part.data, f"{param}.data")
    return part.text


def _compact_json(data: msgspec.Raw, param: str) -> str:
    """Return JSON without white space, with all digits of its numbers.

    Raises:
        InvalidRequest: It is no object or array of objects, has a number that is out of range, or
            exceeds a limit.
    """
    try:
        value = msgspec.json.decode(data)
    except msgspec.DecodeError as error:  # the syntax has been checked, but not the numbers
        raise InvalidRequest(f"Invalid '{param}': {error}.", param, "invalid_value") from None
    if not isinstance(value, dict) and not (
        isinstance(value, list) and all(isinstance(item, dict) for item in value)
    ):
        raise InvalidRequest(
            f"Invalid type for '{param}': expected an object or an array of objects.",
            param,
            "invalid_type",
        )
    text = msgspec.json.format(bytes(data), indent=-1)
    depth, num_values = _size(value)
    for what, number, most in (
        ("levels", depth, MAX_JSON_DEPTH),
        ("values", num_values, MAX_JSON_VALUES),
        ("bytes", len(text), MAX_JSON_BYTES),
    ):
        if number > most:
            raise InvalidRequest(
                f"Invalid '{param}': it has {number} {what}, and at most {most} are allowed.",
                param,
                "invalid_value",
            )
    return text.decode()


def _size(value: Any) -> tuple[int, int]:
    """Return the number of levels of objects and arrays, and the number of values."""
    depth = num_values = 0
    level = [value]
    while level:
        num_values += len(level)
        containers = [each for each in level if isinstance(each, dict | list)]
        depth += bool(containers)
        level = [
            item
            for each in containers
            for item in (each.values() if isinstance(each, dict) else each)
        ]
    return depth, num_values


def _tag(part: Any) -> str:
    return str(type(part).__struct_config__.tag)
