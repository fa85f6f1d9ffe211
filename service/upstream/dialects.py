"""The names of our options in the API of each kind of upstream.

All of them follow OpenAI's API. They differ in the further options, and in their names. The names
were read in the sources of vLLM 0.32, SGLang 0.5.23 and llama.cpp b11434, in the `openai`
package 3.57, and in https://docs.ollama.com/api/openai-compatibility.
"""

import re
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

from service.errors import UnsupportedField


class Dialect(Enum):
    """The kind of an upstream."""

    OPENAI = "openai"
    VLLM = "vllm"
    SGLANG = "sglang"
    LLAMACPP = "llamacpp"
    OLLAMA = "ollama"


def _everywhere(name: str) -> tuple[str | None, ...]:
    return (name,) * len(Dialect)


# For each of our fields its name in each dialect, in the order of `Dialect`. None means that a
# request with the field is rejected. A name with a dot is a field of an object.
OPTIONS: Mapping[str, tuple[str | None, ...]] = {
    "messages.content.image": _everywhere("image_url"),
    "sampling.temperature": _everywhere("temperature"),
    "sampling.top_p": _everywhere("top_p"),
    "sampling.presence_penalty": _everywhere("presence_penalty"),
    "sampling.frequency_penalty": _everywhere("frequency_penalty"),
    "sampling.seed": _everywhere("seed"),
    "sampling.stop": _everywhere("stop"),
    "sampling.max_completion_tokens": (
        *("max_completion_tokens", "max_completion_tokens", "max_completion_tokens"),
        *("max_tokens", "max_tokens"),
    ),
    "sampling.n": ("n", "n", "n", "n", None),
    "sampling.logit_bias": ("logit_bias", "logit_bias", "logit_bias", "logit_bias", None),
    "sampling.top_k": (None, "top_k", "top_k", "top_k", None),
    "sampling.min_p": (None, "min_p", "min_p", "min_p", None),
    "sampling.repetition_penalty": (
        *(None, "repetition_penalty", "repetition_penalty", "repeat_penalty", None),
    ),
    "sampling.min_tokens": (None, "min_tokens", "min_tokens", None, None),
    "sampling.stop_token_ids": (None, "stop_token_ids", "stop_token_ids", None, None),
    "sampling.ignore_eos": (None, "ignore_eos", "ignore_eos", "ignore_eos", None),
    "sampling.include_stop_str_in_output": (
        *(None, "include_stop_str_in_output", "no_stop_trim", None, None),
    ),
    "sampling.skip_special_tokens": (
        *(None, "skip_special_tokens", "skip_special_tokens", None, None),
    ),
    "sampling.bad_words": (None, "bad_words", None, None, None),
    "sampling.allowed_token_ids": (None, "allowed_token_ids", None, None, None),
    "tools": _everywhere("tools"),
    "tool_choice": ("tool_choice", "tool_choice", "tool_choice", "tool_choice", None),
    "parallel_tool_calls": (
        *("parallel_tool_calls", "parallel_tool_calls", "parallel_tool_calls"),
        *("parallel_tool_calls", None),
    ),
    "response_format.json_object": _everywhere("response_format"),
    "response_format.json_schema": _everywhere("response_format"),
    "response_format.regex": (None, "structured_outputs.regex", "regex", None, None),
    "response_format.grammar": (None, "structured_outputs.grammar", "ebnf", "grammar", None),
    "response_format.choice": (None, "structured_outputs.choice", None, None, None),
    "logprobs": _everywhere("logprobs"),
    "top_logprobs": _everywhere("top_logprobs"),
    "prompt_logprobs": (None, "prompt_logprobs", None, None, None),
    "return_token_ids": (None, "return_token_ids", None, None, None),
    "reasoning_effort": _everywhere("reasoning_effort"),
    "prompt.chat_template_kwargs_json": (
        *(None, "chat_template_kwargs", "chat_template_kwargs", "chat_template_kwargs", None),
    ),
    "prompt.add_generation_prompt": (
        *(None, "add_generation_prompt", None, "add_generation_prompt", None),
    ),
    "prompt.continue_final_message": (
        *(None, "continue_final_message", "continue_final_message", "continue_final_message"),
        None,
    ),
    "prompt.truncate_prompt_tokens": (None, "truncate_prompt_tokens", None, None, None),
    "priority": (None, "priority", "priority", None, None),
    "cache_salt": (None, "cache_salt", "cache_salt", None, None),
    # Only in text completions.
    "prompts.text": _everywhere("prompt"),
    "prompts.token_ids": ("prompt", "prompt", "prompt", "prompt", None),
    "echo": ("echo", "echo", "echo", None, None),
    "add_special_tokens": (None, "add_special_tokens", None, None, None),
}

# Rows of the table that are not fields, but values of fields.
_PARTS_OF_FIELDS = {"messages.content.image", "prompts.text", "prompts.token_ids"}
_COLUMNS = {dialect: i for i, dialect in enumerate(Dialect)}
# The field of a request that a name in an error means, if it is no name of an option.
_OTHER_FIELDS = {
    "max_tokens": "sampling.max_completion_tokens",
    "max_completion_tokens": "sampling.max_completion_tokens",
    "messages": "messages",
    "prompt": "prompts",
    "model": "model",
    "structured_outputs": "response_format",
    "response_format": "response_format",
    "input": "input",
    "dimensions": "dimensions",
}


class Names:
    """The names of our fields in one dialect.

    Attributes:
        unsupported_fields: See `service.domain.backend.ModelSpec`.
    """

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        column = _COLUMNS[dialect]
        self._names = {field: names[column] for field, names in OPTIONS.items()}
        self._fields = {name: field for field, name in self._names.items() if name} | _OTHER_FIELDS
        missing = {field for field, name in self._names.items() if name is None}
        if "prompt.truncate_prompt_tokens" in missing:
            missing.add("truncate_prompt_tokens")  # that of text completions
        self.unsupported_fields = frozenset(missing - _PARTS_OF_FIELDS)

    def has(self, field: str) -> bool:
        """Return True if the dialect has the field."""
        return self._names[field] is not None

    def of(self, field: str, path: str = "") -> str:
        """Return the dialect's name of `field`.

        Args:
            path: The field's path in the request for an error, if it is not `field`.

        Raises:
            UnsupportedField: The dialect does not have the field.
        """
        name = self._names[field]
        if name is None:
            raise UnsupportedField(path or field, "is not supported by this model's service.")
        return name

    def put(self, body: dict[str, Any], field: str, value: Any, path: str = "") -> None:
        """Set a field in the body of a request. See `of`."""
        *objects, name = self.of(field, path).split(".")
        for each in objects:
            body = body.setdefault(each, {})
        body[name] = value

    def field_of(self, param: str) -> str:
        """Return our field for the parameter that an error of the upstream names; "" if unknown.

        The path of a parameter may begin with `body`, and indices may follow a dot.
        """
        first, *rest = _steps(param)
        field = self._fields.get(first, "")
        if field == "messages" or first == "tools":
            return (field or first) + "".join(rest)
        return field


def _steps(param: str) -> Iterator[str]:
    """Yield the first name of a path, then its further steps as `[1]` or `.name`."""
    names = [name for name in re.split(r"[.\[\]]+", param.strip()) if name]
    if names[:1] == ["body"]:
        del names[0]
    yield names[0] if names else ""
    for name in names[1:]:
        yield f"[{name}]" if name.isdecimal() else f".{name}"
