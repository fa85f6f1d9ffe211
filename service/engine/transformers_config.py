"""What transformers makes of a config.json. Importing it takes 1.5 s, its first use another 3."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from service.engine.decoder.rope import SERVED


def describe(path: Path) -> dict[str, Any]:
    """The fields of `service.engine.model_config.read_config`, which JSON can hold."""
    config: Any = AutoConfig.from_pretrained(path, local_files_only=True)
    text_config = config.get_text_config()
    fields = fields_of(text_config) | {"whole_model_type": config.model_type}
    if text_config is not config:  # the whole model decides whether the head is the embedding
        fields["tie_word_embeddings"] = bool(getattr(config, "tie_word_embeddings", False))
    return fields


def fields_of(config: Any) -> dict[str, Any]:
    aliases = {name: getattr(config, name, None) for name in config.attribute_map}
    fields: dict[str, Any] = config.to_dict()
    return fields | aliases | {"rope_frequencies": _rope_frequencies(config)}


def _rope_frequencies(config: Any) -> dict[str, tuple[list[float], float]]:
    """Of each kind of layer with a scaled rotary embedding, by transformers' own functions."""
    parameters = getattr(config, "rope_parameters", None) or {}
    scopes = {"": parameters} if "rope_type" in parameters else parameters
    found = {}
    for name, scope in scopes.items():
        if scope is not None and scope["rope_type"] in SERVED & ROPE_INIT_FUNCTIONS.keys():
            kwargs = {"layer_type": name} if name else {}
            frequencies, scale = ROPE_INIT_FUNCTIONS[scope["rope_type"]](config, None, **kwargs)
            found[name] = (frequencies.tolist(), float(scale))
    return found
