"""The names of proto fields in OpenAI's JSON, for errors."""

import re
from collections.abc import Mapping

NO_NAMES: Mapping[str, str] = {}

_RENAMED = [
    (r"^conversation\.", ""),
    (r"^(sampling|prompt)\.", ""),
    (r"^token_ids\b", "tokens"),
    (r"^return_token_bytes$", "return_token_strs"),
    (r"^prompts\[(\d+)\](\.text|\.token_ids\.ids)?", r"prompt[\1]"),
    (r"^prompts\b", "prompt"),
    (r"^chat_template_kwargs_json", "chat_template_kwargs"),
    (r"^response_format\.(regex|grammar)\b", r"structured_outputs.\1"),
    (r"^response_format\.choice(\.choices)?", "structured_outputs.choice"),
    (r"^tool_choice\.(mode|function_name)$", "tool_choice"),
    (r"\.allowed_tools\.function_names", ".allowed_tools.tools"),
    (r"(content\[\d+\])\.image", r"\1.image_url"),
    (r"(content\[\d+\])\.audio", r"\1.input_audio"),
    (r"\.arguments_json\b", ".arguments"),
]
# A path may continue within a JSON schema, whose keys are the client's.
_SCHEMA = re.compile(
    r"(?:conversation\.)?(?:(?P<before>response_format\.json_schema)\.schema_json(?P<within>.*)"
    r"|(?P<tool>tools\[\d+\]\.function)\.parameters_json_schema(?P<inside>.*))",
    re.DOTALL,
)


def param_of(field: str, names: Mapping[str, str] = NO_NAMES) -> str:
    """Return the OpenAI name of a path of proto fields: `sampling.temperature` is `temperature`.

    Args:
        names: The names that the client uses for parameters with several names, by the first.
    """
    param = _param(field)
    for name, called in names.items():
        if param == name or param.startswith((f"{name}.", f"{name}[")):
            return called + param.removeprefix(name)
    return param


def _param(field: str) -> str:
    if schema := _SCHEMA.fullmatch(field):
        if schema["tool"]:
            return f"{schema['tool']}.parameters{schema['inside']}"
        return f"{schema['before']}.schema{schema['within']}"
    for pattern, replacement in _RENAMED:
        field = re.sub(pattern, replacement, field)
    return field
