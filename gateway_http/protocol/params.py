"""The names of the proto's fields in the JSON of requests, for errors that name a field.

The table has OpenAI's names. If a request has other ones, a map from these to them is passed.
"""

import re
from collections.abc import Mapping

NO_NAMES: Mapping[str, str] = {}

# The paths in the body by the paths in the parameters of an RPC, where the two differ. `[]` stands
# for an index. For a path without an entry, the longest prefix that has one is replaced.
PARAMS: Mapping[str, str] = {
    # Levels that the body does not have.
    "sampling": "",
    "prompt": "",
    # Chat completions.
    "prompt.chat_template_kwargs_json": "chat_template_kwargs",
    "messages[].content[].image": "messages[].content[].image_url",
    "messages[].content[].audio": "messages[].content[].input_audio",
    "messages[].content[].file.data": "messages[].content[].file.file_data",
    "messages[].tool_calls[].function.arguments_json": "messages[].tool_calls[].function.arguments",
    "prediction.content[].image": "prediction.content[].image_url",
    "prediction.content[].audio": "prediction.content[].input_audio",
    "prediction.content[].file.data": "prediction.content[].file.file_data",
    "tools[].function.parameters_json_schema": "tools[].function.parameters",
    "tool_choice.mode": "tool_choice",
    "tool_choice.function_name": "tool_choice",
    "tool_choice.allowed_tools.function_names": "tool_choice.allowed_tools.tools",
    # Response formats.
    "response_format.json_schema.schema_json": "response_format.json_schema.schema",
    "response_format.regex": "structured_outputs.regex",
    "response_format.grammar": "structured_outputs.grammar",
    "response_format.choice": "structured_outputs.choice",
    "response_format.choice.choices": "structured_outputs.choice",
    # Text completions.
    "prompts": "prompt",
    "prompts[]": "prompt[]",
    "prompts[].text": "prompt[]",
    "prompts[].token_ids": "prompt[]",
    "prompts[].token_ids.ids": "prompt[]",
    # Embeddings.
    "text_inputs": "input",
    "text_inputs.texts": "input",
    "text_inputs.texts[]": "input[]",
    "token_inputs": "input",
    "token_inputs.token_ids": "input",
    "token_inputs.token_ids[]": "input[]",
    "token_inputs.token_ids[].ids": "input[]",
    # Embeddings and classifications.
    "truncation": "truncate_prompt_tokens",
    "truncation.max_tokens": "truncate_prompt_tokens",
    "truncation.side": "truncation_side",
    "activation": "use_activation",
    "max_tokens_per_document": "max_tokens_per_doc",
    # Decisions.
    "questions[].kind": "questions[].type",
    "questions[].predicate": "questions[]",
    "questions[].choice.choices": "questions[].choices",
    "questions[].choice.choices[].text": "questions[].choices[].value",
    "questions[].choice.choices[].boolean": "questions[].choices[].value",
    "questions[].score.levels": "questions[].levels",
    # Tokens.
    "token_ids": "tokens",
    "return_token_bytes": "return_token_strs",
}
# The level of a request to tokenize that the body does not have.
_CONVERSATION = "conversation."

_SEGMENT = re.compile(r"\.?\w+|\[\d+\]")
_INDEX = re.compile(r"\[\d+\]")


def param_of(field: str, names: Mapping[str, str] = NO_NAMES) -> str:
    """Return the path in the JSON of a field: `sampling.temperature` is `temperature`.

    Args:
        field: The path in the parameters of an RPC. It may continue within a JSON schema.
        names: The client's paths of parameters by their paths in OpenAI's API, where they differ.
            The first entry that is the path, or a beginning of it, applies.
    """
    param = _param(field.removeprefix(_CONVERSATION))
    for name, sent_name in names.items():
        if param == name or param.startswith((f"{name}.", f"{name}[")):
            return sent_name + param.removeprefix(name)
    return param


def _param(field: str) -> str:
    """Return `field` with its longest beginning that is in `PARAMS` replaced."""
    end, beginning, param, length = 0, "", None, 0
    while segment := _SEGMENT.match(field, end):
        end = segment.end()
        beginning += "[]" if segment[0].startswith("[") else segment[0]
        if beginning in PARAMS:
            param, length = PARAMS[beginning], end
    if param is None:
        return field
    indices = iter(_INDEX.findall(field[:length]))
    param = re.sub(r"\[\]", lambda _: next(indices), param)
    return (param + field[length:]).removeprefix(".")
