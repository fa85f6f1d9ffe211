"""Reads a config.json with transformers. The import takes 1.5 s, the first call 3 s."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from service.engine.decoder.rope import SERVED


def describe(path: Path) -> dict[str, Any]:
    """Return the fields of `service.engine.model_config.read_config`, as JSON values."""
    config: Any = AutoConfig.from_pretrained(path, local_files_only=True)
    text_config = config.get_text_config()
    fields = fields_of(text_config) | {"whole_model_type": config.model_type}
    if text_config is not config:  # the whole model's config has the right value
        fields["tie_word_embeddings"] = bool(getattr(config, "tie_word_embeddings", False))
    return fields


def fields_of(config: Any) -> dict[str, Any]:
    """Return the fields of a transformers config, under their aliases too."""
    aliases = {name: getattr(config, name, None) for name in config.attribute_map}
    fields: dict[str, Any] = config.to_dict()
    return fields | aliases | {"rope_frequencies": _rope_frequencies(config)}


def _rope_frequencies(config: Any) -> dict[str, tuple[list[float], float]]:
    """Return the inverse frequencies and scale of each scaled rotary embedding, by layer kind."""
    parameters = getattr(config, "rope_parameters", None) or {}
    scopes = {"": parameters} if "rope_type" in parameters else parameters
    found = {}
    for name, scope in scopes.items():
        if scope is not None and scope["rope_type"] in SERVED & ROPE_INIT_FUNCTIONS.keys():
            kwargs = {"layer_type": name} if name else {}
            frequencies, scale = ROPE_INIT_FUNCTIONS[scope["rope_type"]](config, None, **kwargs)
            found[name] = (frequencies.tolist(), float(scale))
    return found
