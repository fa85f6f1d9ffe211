from pathlib import Path

import pytest

from chatrpc_process.keys import KeyRing, load_keys, load_secret
from chatrpc_process.secret import digest_of, new_secret
from chatrpc_process.settings import ConfigError


def write(path: Path, text: str) -> Path:
    (path / "keys.toml").write_text(text)
    return path / "keys.toml"


def entry(name: str, secret: str, more: str = "") -> str:
    return f'[[key]]\nname = "{name}"\nsha256 = "{digest_of(secret)}"\n{more}\n'


def test_a_key_is_found_by_its_secret_alone(tmp_path: Path) -> None:
    secret = new_secret()
    ring = load_keys(write(tmp_path, entry("a", secret) + entry("b", "other")))
    found = ring.find(secret)
    assert found is not None
    assert found.name == "a"
    for wrong in ("", "a", secret[:-1], secret + "x", digest_of(secret), "\udcff"):
        assert ring.find(wrong) is None


@pytest.mark.parametrize(
    "text",
    [
        "SECRET = SECRET",
        "'SECRET' = 1",
        "[[SECRET]]\nSECRET = 1\n[[SECRET]]\nSECRET = 2\nSECRET = 3",
        "[SECRET]\n[SECRET]",
        "a = {SECRET = 1, SECRET = 2}",
        "[[key]]\nname = 'SECRET",
        "[[key]]\nsha256 = 'SECRET'",
        "[[key]]\nname = ['SECRET']",
        "[[key]]\nSECRET = 'x'",
        "[[key]]\nmodels = 'SECRET'",
        "[[key]]\nrequests_per_minute = 'SECRET'",
        "SECRET\0",
        "key = [" * 5000 + "'SECRET'",
    ],
)
def test_what_is_wrong_with_a_file_quotes_nothing_of_it(tmp_path: Path, text: str) -> None:
    secret = new_secret()
    path = write(tmp_path, text.replace("SECRET", secret))
    with pytest.raises(ConfigError) as caught:
        load_keys(path)
    assert secret not in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "  \n", "a b", "a\nb", "ü", "x" * 1025])
def test_one_secret_in_a_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "secret"
    path.write_text(" sk-1 \n")
    assert load_secret(path) == "sk-1"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_secret(path)
    assert not text.strip() or text not in str(caught.value)
    with pytest.raises(ConfigError, match="No such file"):
        load_secret(tmp_path / "none")


def test_a_file_without_keys_lets_nobody_in(tmp_path: Path) -> None:
    assert load_keys(write(tmp_path, "key = []\n")).find("x") is None
    assert KeyRing(()).find("") is None


def test_a_key_may_be_for_some_models(tmp_path: Path) -> None:
    text = entry("a", "x", 'models = ["small-*", "exact"]') + entry("b", "y")
    ring = load_keys(write(tmp_path, text))
    some, every = ring.find("x"), ring.find("y")
    assert some is not None
    assert every is not None
    assert [some.may_use(name) for name in ("small-1", "exact", "exact2", "large")] == [
        True,
        True,
        False,
        False,
    ]
    assert every.may_use("anything/at all")


def test_limits_are_read(tmp_path: Path) -> None:
    text = entry("a", "x", "requests_per_minute = 5\ntokens_per_minute = 7")
    key = load_keys(write(tmp_path, text)).find("x")
    assert key is not None
    assert (key.requests_per_minute, key.tokens_per_minute) == (5, 7)
    assert key.max_concurrent_requests is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[[key]", "keys.toml"),
        ("[[key]]\nname = 'a'", "sha256"),
        ("[[key]]\nname = 'a'\nsha256 = 'sk-secret'", "sha256"),
        (entry("a", "x", "requests_per_minute = 0"), "requests_per_minute"),
        (entry("a", "x", "rpm = 5"), "rpm"),
        (entry("a", "x") + entry("a", "y"), "name"),
        (entry("a", "x") + entry("b", "x"), "sha256"),
        ("other = 1", "other"),
    ],
)
def test_a_mistake_is_named_and_no_secret_with_it(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        load_keys(write(tmp_path, text))
    assert "sk-secret" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml"):
        load_keys(tmp_path / "none.toml")


def test_no_two_secrets_are_the_same() -> None:
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert all(len(secret) > 40 for secret in secrets)
