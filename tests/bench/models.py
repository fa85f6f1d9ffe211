"""A tiny model with random weights, in the formats that servers load."""

import json
from pathlib import Path

from bench.checkpoints import gguf_file, random
from bench.model import Model
from bench.shapes import Shape

SHAPE = Shape("llama", 32, 64, 2, 4, 2, 8, 40, 1e4, tie_word_embeddings=True)


def tokenizer(path: Path) -> Path:
    """Write the files of a tokenizer of 16 tokens, of which two are special, to `path`."""
    path.mkdir()
    vocabulary = {"<s>": 0, "</s>": 1, **{chr(96 + index): index for index in range(2, 16)}}
    added = [{"id": index, "content": name, "special": True} for name, index in vocabulary.items()]
    text = {
        "added_tokens": added[:2],
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [["b", "c"]]},
    }
    (path / "tokenizer.json").write_text(json.dumps(text))
    (path / "tokenizer_config.json").write_text("{}")
    (path / "chat_template.jinja").write_text("{{ messages }}")
    ids = {"bos_token_id": 0, "eos_token_id": [1], "pad_token_id": 1}
    (path / "config.json").write_text(json.dumps({"vocab_size": 16, **ids}))
    return path


def tiny(path: Path) -> Model:
    """Return a model with files in `path`. Its file in Q4_0 has the weights in bfloat16."""
    source = path / "bf16"
    random.write(SHAPE, tokenizer(path / "tokenizer"), source)
    gguf_file.write(SHAPE, source, path / "q4_0.gguf")
    file = path / "q4_0.gguf"
    return Model("tiny", "a tiny model", path, lambda: str(source), lambda: source, lambda: file)
