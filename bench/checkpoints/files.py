"""Names and writers of files that checkpoints of all kinds have."""

import json
from pathlib import Path
from typing import Any

INDEX = "model.safetensors.index.json"


def write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")
