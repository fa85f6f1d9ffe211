"""The registry file: its content, its errors and its reloading."""

import json
import os
import re
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import structlog
import trustme
from hypothesis import given
from hypothesis import strategies as st

from chatrpc_process.errors import ConfigError
from gateway_http.upstream.affinity import PrefixAffinity, SessionAffinity
from gateway_http.upstream.registry import (
    HostedModel,
    RegisteredModel,
    hosted_models,
    load_registry,
)
from gateway_http.upstream.registry_file import RegistryFile
from tests.support.tls_files import issue, lock

LEAST = '[[model]]\nname = "m"\ntarget = "127.0.0.1:1"\n'


def written(directory: Path, text: str) -> Path:
    path = directory / "registry.toml"
    path.write_text(text)
    return path


def entry(directory: Path, fields: str = "") -> RegisteredModel:
    [only] = load_registry(written(directory, LEAST + fields)).entries
    assert isinstance(only, RegisteredModel)
    return only


def key_of(file: RegistryFile) -> str | None:
    first = file.entries[0]
    assert isinstance(first, RegisteredModel)
    return first.connection.api_key


def config(of: RegisteredModel) -> Any:
    return json.loads(of.connection.service_config)


def test_minimal_entry_has_defaults(tmp_path: Path) -> None:
    found = entry(tmp_path)
    assert (found.name, found.aliases, found.upstream_model) == ("m", (), "m")
    assert (found.connection.target, found.connection.health_name) == ("127.0.0.1:1", "m")
    assert found.connection.tls is None
    assert found.connection.api_key is None
    [policy] = config(found)["loadBalancingConfig"]
    assert policy["weighted_round_robin"]["enableOobLoadReport"]
    assert config(found)["healthCheckConfig"] == {"serviceName": "m"}


def test_names_of_both_sides(tmp_path: Path) -> None:
    found = entry(tmp_path, 'aliases = ["org/m:8b", "größer"]\nupstream_model = "m-instruct"')
    assert found.aliases == ("org/m:8b", "größer")
    assert (found.upstream_model, found.connection.health_name) == ("m-instruct", "m-instruct")


def test_shutdown_date_is_a_date_of_toml(tmp_path: Path) -> None:
    assert entry(tmp_path).shutdown_date is None
    assert entry(tmp_path, "shutdown_date = 2027-03-31").shutdown_date == date(2027, 3, 31)


@pytest.mark.parametrize("value", ['"2027-03-31"', "5", "2027-03-31T00:00:00", "true"])
def test_shutdown_date_of_another_type_is_rejected(tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigError, match="shutdown_date: Input should be a valid date"):
        entry(tmp_path, f"shutdown_date = {value}")


HOSTED = '[[model]]\nname = "m"\nmodel = "%s"\n'


def hosted(directory: Path, model: str, fields: str = "") -> HostedModel:
    [only] = load_registry(written(directory, HOSTED % model + fields)).entries
    assert isinstance(only, HostedModel)
    return only


def test_hosted_model_has_the_options_of_its_service(tmp_path: Path) -> None:
    assert hosted(tmp_path, "org/name") == HostedModel("m", "org/name")
    fields = (
        'aliases = ["n"]\narguments = ["--dtype", "float32"]\nport = 50060\nmemory = "2GiB"\n'
        "idle_timeout_s = 60\nshutdown_date = 2027-03-31"
    )
    assert hosted(tmp_path, "org/name", fields) == HostedModel(
        "m", "org/name", ("n",), ("--dtype", "float32"), 50060, 2 << 30, 60.0, date(2027, 3, 31)
    )


def test_path_of_a_hosted_model_starts_at_the_registry(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    assert hosted(tmp_path, "weights").model == str(tmp_path / "weights")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[[model]]\nname = "m"', "either target or model must be set"),
        (LEAST + 'model = "x"', "either target or model must be set"),
        (LEAST + "port = 1", "port can only be set together with model"),
        (HOSTED % "x" + 'balance = "round_robin"', "balance can only be set together with target"),
        (HOSTED % "x" + 'ca = "x"', "ca can only be set together with target"),
        (HOSTED % "x" + "port = 0", "model.0.port"),
        (HOSTED % "x" + 'memory = "many"', "model.0.memory"),
        (HOSTED % "x" + "idle_timeout_s = -1", "model.0.idle_timeout_s"),
        (HOSTED % "x" + "idle_timeout_s = nan", "model.0.idle_timeout_s"),
        (HOSTED % "x" + "arguments = [1]", "model.0.arguments.0"),
        (HOSTED % "", "model.0.model"),
        (HOSTED % "x" + LEAST, "'m' is model.0's already"),
        (
            HOSTED % "x" + "port = 7\n" + (HOSTED % "x").replace('"m"', '"n"') + "port = 7",
            "model.1.port: 7 is model.0's already",
        ),
    ],
)
def test_invalid_hosted_model_is_an_error_that_names_the_field(
    tmp_path: Path, text: str, words: str
) -> None:
    with pytest.raises(ConfigError) as error:
        load_registry(written(tmp_path, text))
    assert words in str(error.value)


def test_models_of_the_command_line_are_called_by_their_last_part(tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    file = tmp_path / "small.gguf"
    file.touch()
    given = [str(tmp_path / "large"), str(file), "org/name", f"own={file}", "missing/x.gguf"]
    assert hosted_models(given) == (
        HostedModel("large", given[0]),
        HostedModel("small", given[1]),
        HostedModel("org/name", "org/name"),
        HostedModel("own", str(file)),
        HostedModel("x", "missing/x.gguf"),
    )


@pytest.mark.parametrize(
    ("models", "words"),
    [
        (["a", "a"], "two models are called 'a'"),
        (["a=x", "b=y", "a=z"], "Write NAME=z to name one of them"),
        (["a b=x"], "models: a b=x: name"),
        (["=x"], "models: =x: name"),
        (["a="], "models: a=: model"),
        ([""], "models: : "),
    ],
)
def test_invalid_models_of_the_command_line_are_rejected(models: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        hosted_models(models)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("fields", "affinity"),
    [
        ('affinity = "session"', SessionAffinity()),
        ('affinity = "prefix"', PrefixAffinity(1024)),
        ('affinity = "prefix"\nprefix_chars = 10', PrefixAffinity(10)),
    ],
)
def test_affinity_of_an_entry_is_read(
    tmp_path: Path, fields: str, affinity: SessionAffinity | PrefixAffinity
) -> None:
    found = entry(tmp_path, 'balance = "ring_hash"\n' + fields)
    assert found.affinity == affinity
    assert "ring_hash_experimental" in config(found)["loadBalancingConfig"][0]


def test_outlier_detection_surrounds_the_policy(tmp_path: Path) -> None:
    found = entry(
        tmp_path, 'balance = "round_robin"\noutlier_detection = {failure_percentage = 50}'
    )
    [policy] = config(found)["loadBalancingConfig"]
    outer = policy["outlier_detection_experimental"]
    assert outer["failurePercentageEjection"]["threshold"] == 50
    assert outer["interval"] == "10.000s"
    assert outer["childPolicy"] == [{"round_robin": {}}]


@pytest.mark.parametrize(
    ("text", "message_part"),
    [
        ("", "model: Field required"),
        ("model = []", "model: Tuple should have at least 1 item"),
        ("[[model]", "Expected ']]'"),
        ('[[model]]\nname = "m"', "either target or model must be set"),
        ('[[model]]\ntarget = "a:1"', "model.0.name: Field required"),
        (LEAST + "targets = 1", "model.0.targets: Extra inputs are not permitted"),
        (LEAST + 'aliases = ["a b"]', "model.0.aliases.0: String should match"),
        (LEAST + 'aliases = ["/m"]', "model.0.aliases.0: String should match"),
        (LEAST + 'aliases = ["\\u0007"]', "model.0.aliases.0: String should match"),
        (LEAST + 'aliases = ["m"]', "model.0: 'm' is model.0's already"),
        (LEAST + LEAST, "model.1: 'm' is model.0's already"),
        (LEAST.replace("127.0.0.1:1", "a b"), "model.0.target: String should match"),
        (LEAST.replace("127", "ipv4:999"), "does not begin with an IP address"),
        (LEAST.replace("127.0.0.1:1", "ipv4:127.0.0.1:99999"), "not an IPv4 address and a port"),
        (LEAST.replace("127.0.0.1:1", "ipv6:127.0.0.1:1"), "not an IPv6 address and a port"),
        (LEAST + 'balance = "least_request"', "model.0.balance: Input should be"),
        (LEAST + 'balance = "ring_hash"', "'ring_hash' and affinity must be set together"),
        (LEAST + 'affinity = "session"', "'ring_hash' and affinity must be set together"),
        (
            LEAST + 'balance = "ring_hash"\naffinity = "session"\nprefix_chars = 5',
            "prefix_chars needs affinity = 'prefix'",
        ),
        (LEAST + 'certificate = "a"', "certificate and key must be set together"),
        (LEAST + 'certificate = "a"\nkey = "b"', "certificate needs ca"),
        (LEAST + 'ca = "none.pem"', "model 'm': "),
        (LEAST + 'api_key_file = "none"', "model 'm': api_key_file: "),
        (LEAST + 'api_key_file = "\\u0000"', "model 'm': api_key_file: "),
        (LEAST + 'api_key_file = "."', "this is not a regular file"),
        (LEAST + "prefix_chars = " + "[" * 20_000, "nested too deeply"),
        (LEAST + "prefix_chars = " + "1" * 5_000, "5000 digits"),
        (
            LEAST + "outlier_detection = {interval_s = 0}",
            "model.0.outlier_detection.interval_s: Input should be greater than or equal to 0.01",
        ),
    ],
)
def test_invalid_registry_is_reported_in_one_line(
    tmp_path: Path, text: str, message_part: str
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_registry(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message_part in message
    assert "\n" not in message


def test_file_that_is_not_a_registry_is_rejected(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(ConfigError, match=str(path)):
            load_registry(path)
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"bytes\.toml"):
        load_registry(tmp_path / "bytes.toml")


@given(st.text(max_size=60))
def test_any_text_is_a_registry_or_an_error(tmp_path_factory: Any, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(LEAST + text, newline="", errors="surrogatepass")
    with suppress(ConfigError):
        load_registry(path)


def test_secrets_come_from_files_beside_it_and_show_nowhere(tmp_path: Path) -> None:
    ca, own = trustme.CA(), trustme.CA().issue_cert("gateway")
    (tmp_path / "ca.crt").write_bytes(ca.cert_pem.bytes())
    (tmp_path / "own.crt").write_bytes(own.cert_chain_pems[0].bytes())
    (tmp_path / "own.key").write_bytes(own.private_key_pem.bytes())
    (tmp_path / "api.key").write_text("sk-secret\n")
    fields = 'ca = "ca.crt"\ncertificate = "own.crt"\nkey = "own.key"\napi_key_file = "api.key"\n'
    found = entry(tmp_path, fields)
    assert found.connection.tls is not None
    assert found.connection.tls.ca == ca.cert_pem.bytes()
    assert found.connection.api_key == "sk-secret"
    assert "sk-secret" not in repr(found)
    assert "PRIVATE" not in repr(found)

    other = trustme.CA().issue_cert("gateway")
    (tmp_path / "own.key").write_bytes(other.private_key_pem.bytes())
    with pytest.raises(ConfigError, match=r"model 'm': .*own\.key"):
        entry(tmp_path, fields)
    (tmp_path / "ca.crt").write_text("no PEM")
    with pytest.raises(ConfigError, match=r"ca\.crt"):
        entry(tmp_path, 'ca = "ca.crt"')
    (tmp_path / "api.key").write_text("two secrets\n")
    with pytest.raises(ConfigError) as caught:
        entry(tmp_path, 'api_key_file = "api.key"')
    assert "two secrets" not in str(caught.value)


def test_pipe_or_encrypted_key_is_rejected_at_once(tmp_path: Path) -> None:
    """Reading waits neither for a writer of a pipe nor for a passphrase at the terminal."""
    ca = trustme.CA()
    (tmp_path / "ca.crt").write_bytes(ca.cert_pem.bytes())
    files = issue(ca, tmp_path)
    lock(files.key)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match=r"tls\.key"):
        entry(tmp_path, 'ca = "ca.crt"\ncertificate = "tls.crt"\nkey = "tls.key"')
    for fields in ('ca = "pipe"', 'api_key_file = "pipe"'):
        with pytest.raises(ConfigError, match="pipe: this is not a regular file"):
            entry(tmp_path, fields)
    with pytest.raises(ConfigError, match="pipe: this is not a regular file"):
        load_registry(tmp_path / "pipe")


@pytest.mark.parametrize("page", ["README.md", "docs/routing.md"])
def test_example_of_the_documentation_is_valid(tmp_path: Path, page: str) -> None:
    text = (Path(__file__).parents[3] / page).read_text()
    (tmp_path / "tls").mkdir()
    (tmp_path / "tls/ca.crt").write_bytes(trustme.CA().cert_pem.bytes())
    (tmp_path / "large.key").write_text("sk-large")
    blocks = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    shown = [block for block in blocks if "[[model]]" in block]
    assert shown
    for block in shown:
        assert load_registry(written(tmp_path, block)).entries
    for defaults in (block for block in blocks if block.startswith("outlier_detection.")):
        assert entry(tmp_path, defaults) == entry(tmp_path, "outlier_detection = {}")


def touch(path: Path, text: str) -> None:
    """Write a file with a modification time that is later on any file system."""
    before = path.stat()
    path.write_text(text)
    later = max(before.st_mtime_ns, path.stat().st_mtime_ns) + 1_000_000
    os.utime(path, ns=(later, later))


def test_change_is_read_and_corrupt_change_is_not(tmp_path: Path) -> None:
    path = written(tmp_path, LEAST)
    file = RegistryFile(path)
    assert not file.refresh()
    touch(path, LEAST.replace('"m"', '"other"'))
    assert file.refresh()
    assert [entry.name for entry in file.entries] == ["other"]
    for corrupt in ("", "[[model", LEAST + LEAST):
        touch(path, corrupt)
        with structlog.testing.capture_logs() as logs:
            assert not file.refresh()
        assert [entry.name for entry in file.entries] == ["other"]
        assert [log["event"] for log in logs] == ["file_reload_failed"]
    path.unlink()
    assert not file.refresh()
    assert [entry.name for entry in file.entries] == ["other"]


def test_file_that_is_created_later_is_read(tmp_path: Path) -> None:
    key = tmp_path / "api.key"
    path = written(tmp_path, LEAST)
    file = RegistryFile(path)
    touch(path, LEAST + 'api_key_file = "api.key"')
    with structlog.testing.capture_logs() as logs:
        assert not file.refresh()
        assert not file.refresh()
    assert [log["event"] for log in logs] == ["file_reload_failed"]
    key.write_text("first")
    assert file.refresh()
    assert key_of(file) == "first"
    touch(key, "second")
    assert file.refresh()
    assert key_of(file) == "second"


def test_changed_key_file_is_read(tmp_path: Path) -> None:
    key = tmp_path / "api.key"
    key.write_text("first")
    path = written(tmp_path, LEAST)
    file = RegistryFile(path)
    touch(path, LEAST + 'api_key_file = "api.key"')
    assert file.refresh()
    touch(key, "second")
    assert file.refresh()
    assert key_of(file) == "second"
    touch(key, "")
    assert not file.refresh()
    assert key_of(file) == "second"
