"""The links between libraries of llama.cpp, which a wheel cannot contain."""

import json
from pathlib import Path

from bench.peers.llama_cpp import restore_links


def test_links_are_read_from_the_list(tmp_path: Path) -> None:
    (tmp_path / "libggml.so.0.16.0").write_text("code")
    (tmp_path / "llama-server").write_text("code")
    links = {"libggml.so": "libggml.so.0", "libggml.so.0": "libggml.so.0.16.0"}
    (tmp_path / "_symlinks.json").write_text(json.dumps(links))
    for _ in range(2):  # the second time, the links exist
        restore_links(tmp_path)
    assert (tmp_path / "libggml.so").resolve() == tmp_path / "libggml.so.0.16.0"
    assert (tmp_path / "llama-server").stat().st_mode & 0o111
