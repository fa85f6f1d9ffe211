"""A tiny checkpoint with random weights and a tokenizer of 300 tokens."""

from pathlib import Path
from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.support.library_tokenizers import byte_level

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"


def save_model(path: Path, vocab_size: int, **fields: Any) -> Path:
    """Save a tiny model with random weights and a tokenizer of 300 tokens. Return its path.

    Args:
        fields: Fields of the model's config, in place of those here.
    """
    backend = byte_level()
    make: Any = PreTrainedTokenizerFast
    tokenizer = make(tokenizer_object=backend, eos_token="<|im_end|>", chat_template=TEMPLATE)
    tokenizer.save_pretrained(path)
    shape: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 4096,
    }
    model: Any = LlamaForCausalLM(LlamaConfig(**shape | fields))
    model.save_pretrained(path)
    return path
