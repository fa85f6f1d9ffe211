"""The fields of requests that set the fields of an engine's `Request`."""

from collections.abc import Mapping
from dataclasses import fields

from service.domain.engine import EngineCapabilities
from service.domain.sampling import SamplingParams
from service.errors import ModelLoadError

# The paths in the parameters of an RPC of the fields that need a grammar.
RESPONSE_FORMATS = (
    "response_format.json_object",
    "response_format.json_schema",
    "response_format.regex",
    "response_format.grammar",
    "response_format.choice",
)

_SAMPLING_FIELDS = {field.name for field in fields(SamplingParams)} - {"given"}

# By the fields of `SamplingParams` and of `Request` that requests can set.
_PATHS: Mapping[str, tuple[str, ...]] = {
    **{name: (f"sampling.{name}",) for name in _SAMPLING_FIELDS},
    "max_tokens": ("sampling.max_completion_tokens",),
    "n": ("sampling.n",),
    "bad_token_sequences": ("sampling.bad_words",),
    "priority": ("priority",),
    "cache_salt": ("cache_salt",),
    "num_logprobs": ("logprobs",),
    "num_prompt_logprobs": ("prompt_logprobs",),
    "constraint": RESPONSE_FORMATS,
}


def unsupported_fields(capabilities: EngineCapabilities) -> frozenset[str]:
    """Return the paths of the fields of requests that an engine does not serve.

    Raises:
        ModelLoadError: A name in `unsupported` is no field that requests can set.
    """
    if unknown := capabilities.unsupported - _PATHS.keys():
        raise ModelLoadError(
            f"The engine {capabilities.name} declares fields as unsupported that no request can "
            f"set: {', '.join(sorted(unknown))}."
        )
    return frozenset(path for name in capabilities.unsupported for path in _PATHS[name])
