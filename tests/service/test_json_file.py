"""JSON files of a checkpoint."""

from pathlib import Path

import pytest

from service.errors import ModelLoadError
from service.json_file import read_json_object


def test_object_is_returned(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a": [1, null]}')
    assert read_json_object(path) == {"a": [1, None]}


def test_missing_file_is_an_empty_object(tmp_path: Path) -> None:
    assert read_json_object(tmp_path / "config.json") == {}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"{", "config.json is not valid JSON: "),
        (b"\xff", "config.json is not valid JSON: "),
        (b"[1]", "config.json is not a JSON object."),
    ],
)
def test_file_without_an_object_is_rejected_by_its_name(
    tmp_path: Path, content: bytes, complaint: str
) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError) as caught:
        read_json_object(path)
    assert f"{tmp_path}/{complaint}" in str(caught.value)
