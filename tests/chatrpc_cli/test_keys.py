"""`chatrpc keys new`: what it prints is a key that files of keys take."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from chatrpc_cli.__main__ import app
from chatrpc_process.keys import load_keys


def test_the_entry_is_for_the_file_and_the_secret_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    secrets = []
    with path.open("w") as file:
        for name, *options in (
            ("plain",),
            ('a "quoted" \\ name: ü 😀', "--model", "org/a-*", "--model", "b"),
            ("limited", "--requests-per-minute", "5", "--tokens-per-minute", "7"),
            ("single", "--max-concurrent-requests", "1"),
        ):
            result = CliRunner().invoke(app, ["keys", "new", "--name", name, *options])
            assert result.exit_code == 0
            secrets.append(result.stderr.split()[-1])
            assert secrets[-1] not in result.stdout
            file.write(result.stdout)
    ring = load_keys(path)
    found = [ring.find(secret) for secret in secrets]
    plain, quoted, limited, single = [key for key in found if key is not None]
    assert (plain.name, plain.models, plain.requests_per_minute) == ("plain", ("*",), None)
    assert quoted.name == 'a "quoted" \\ name: ü 😀'
    assert quoted.models == ("org/a-*", "b")
    assert (limited.requests_per_minute, limited.tokens_per_minute) == (5, 7)
    assert single.max_concurrent_requests == 1


@pytest.mark.parametrize("name", ["", "x" * 129, "two\nlines"])
def test_a_name_that_no_file_takes_is_refused(name: str) -> None:
    result = CliRunner().invoke(app, ["keys", "new", "--name", name])
    assert result.exit_code == 2
    assert "--name" in result.output


def test_so_is_a_pattern_that_no_file_takes() -> None:
    result = CliRunner().invoke(app, ["keys", "new", "--name", "a", "--model", "two\nlines"])
    assert result.exit_code == 2
    assert "--model" in result.output
