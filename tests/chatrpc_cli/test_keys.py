"""`chatrpc keys`: created entries are valid, and the check reports the errors of a file."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from chatrpc_cli.__main__ import app
from chatrpc_cli.key_file import add_key
from chatrpc_process.access.keys import Key, check_keys, load_keys
from tests.support.api_keys import key


def new(*options: str) -> Result:
    return CliRunner().invoke(app, ["keys", "new", *options])


def check(path: Path) -> Result:
    return CliRunner().invoke(app, ["keys", "check", str(path)])


def find(path: Path, result: Result) -> Key:
    """Return the key whose secret the command has printed."""
    found = load_keys(path).find(result.stderr.split()[-1])
    assert found is not None
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


def test_entry_is_on_stdout_and_secret_on_stderr(path: Path) -> None:
    secrets = []
    with path.open("w") as file:
        for name, *options in (
            ("plain",),
            ('a "quoted" \\ name: ü 😀', "--model", "org/a-*", "--model", "b"),
            ("limited", "--requests-per-minute", "5", "--tokens-per-minute", "7"),
            ("single", "--max-concurrent-requests", "1"),
        ):
            result = new("--name", name, *options)
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


def test_every_option_of_a_key_is_written(path: Path) -> None:
    options = ["--owner", "shop", "--tokens-per-minute", "9", "--default-max-tokens", "3"]
    options += ["--weight", "7", "--min-priority", "-2", "--cache-scope", "shared"]
    result = new("--name", "a", "--file", str(path), *options, "--may-act-for-others")
    assert result.exit_code == 0, result.output
    found = find(path, result)
    assert (found.owner, found.tokens_per_minute, found.default_max_tokens) == ("shop", 9, 3)
    assert (found.weight, found.min_priority, found.cache_scope) == (7, -2, "shared")
    assert found.may_act_for_others


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--name", ""), "--name"),
        (("--name", "x" * 129), "--name"),
        (("--name", "two\nlines"), "--name"),
        (("--name", "a", "--owner", "two\nlines"), "--owner"),
        (("--name", "a", "--model", "two\nlines"), "--model"),
        (("--name", "a", "--weight", "0"), "--weight"),
        (("--name", "a", "--requests-per-minute", "0"), "--requests-per-minute"),
        (("--name", "a", "--cache-scope", "all"), "--cache-scope"),
        (("--name", "a", "--default-max-tokens", "5"), "--default-max-tokens"),
    ],
)
def test_invalid_option_is_rejected_by_name(
    path: Path, options: tuple[str, ...], named: str
) -> None:
    for result in (new(*options), new("--file", str(path), *options)):
        assert result.exit_code == 2
        assert named in result.output
        assert "sk-chatrpc" not in result.output
    assert not path.exists()


@pytest.mark.parametrize(
    "before",
    [
        None,
        "",
        "key = []",
        "# no keys yet\nkey = [ ]  # for now\n",
        key("x", name="first"),
        "# a comment\n" + key("x", name="first").rstrip("\n"),
    ],
)
def test_key_is_added_to_any_valid_file(path: Path, before: str | None) -> None:
    if before is not None:
        path.write_text(before)
    result = new("--name", "second", "--file", str(path))
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert find(path, result).name == "second"
    names = [each.name for each in check_keys(path).keys]
    assert names == (["first", "second"] if before and "first" in before else ["second"])
    assert ("# a comment" in path.read_text()) == ("# a comment" in (before or ""))
    assert os.listdir(path.parent) == [path.name]  # noqa: PTH208  # only names are compared


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ("[[key]", "not valid TOML"),
        (key("x", "weight = 0"), "weight"),
        (key("x", name="taken"), "name: key 1 (line 1) has the same"),
        (f'key = [{{name = "a", sha256 = "{"0" * 64}"}}]\n', "not in an array"),
        (key("x", 'owner = "taken"', "weight = 5"), "weight"),
    ],
)
def test_file_that_would_become_invalid_is_unchanged(path: Path, before: str, said: str) -> None:
    path.write_text(before)
    result = new("--name", "taken", "--file", str(path))
    assert result.exit_code == 1
    assert said in result.stderr
    assert "nothing was written" in result.stderr
    assert "sk-chatrpc" not in result.output
    assert path.read_text() == before


def test_file_keeps_its_mode_and_a_link_stays_a_link(path: Path) -> None:
    target = path.with_name("real.toml")
    target.write_text(key("x", name="first"))
    target.chmod(0o640)
    path.symlink_to(target)
    assert new("--name", "second", "--file", str(path)).exit_code == 0
    assert path.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert len(check_keys(path).keys) == 2


def test_directory_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    result = new("--name", "a", "--file", str(tmp_path / "none" / "keys.toml"))
    assert result.exit_code == 1
    assert "No such file" in result.stderr


def test_concurrently_added_keys_are_all_kept(path: Path) -> None:
    """In practice each command runs in its own process. The lock works between threads too."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: add_key(path, key(f"secret {i}", name=f"key {i}")), range(24)))
    assert {each.name for each in check_keys(path).keys} == {f"key {i}" for i in range(24)}


def test_check_prints_all_problems_and_warnings(path: Path) -> None:
    path.write_text(key("x", "rpm = 5", "weight = 0") + key("y", name="other"))
    result = check(path)
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert [line.split(":")[0] for line in lines] == ["error", "error", "warning"]
    assert f"{path}: key 1 (line 1): rpm: unknown option" in lines[1] + lines[0]
    assert result.stdout == ""


def test_check_of_a_valid_file_succeeds(path: Path) -> None:
    path.write_text(key("x", "requests_per_minute = 1"))
    result = check(path)
    assert (result.exit_code, result.stderr, result.stdout) == (
        0,
        "",
        "The file is valid. Keys: 1\n",
    )


def test_check_of_a_file_that_cannot_be_read_fails(path: Path) -> None:
    result = check(path)
    assert result.exit_code == 1
    assert "No such file" in result.stderr
