from pathlib import Path

import pytest

from chatrpc_process.access.keys import Key, KeyRing, check_keys, load_keys, load_secret
from chatrpc_process.access.secret import digest_of, new_secret
from chatrpc_process.errors import ConfigError


def write(path: Path, text: str) -> Path:
    (path / "keys.toml").write_text(text)
    return path / "keys.toml"


def entry(name: str, secret: str, more: str = "") -> str:
    return f'[[key]]\nname = "{name}"\nsha256 = "{digest_of(secret)}"\n{more}\n'


def load_one(path: Path, more: str) -> Key:
    key = load_keys(write(path, entry("a", "x", more))).find("x")
    assert key is not None
    return key


def test_key_is_found_by_its_secret_only(tmp_path: Path) -> None:
    secret = new_secret()
    ring = load_keys(write(tmp_path, entry("a", secret) + entry("b", "other")))
    found = ring.find(secret)
    assert found is not None
    assert found.name == "a"
    for wrong in ("", "a", secret[:-1], secret + "x", digest_of(secret), "\udcff"):
        assert ring.find(wrong) is None


def test_look_up_compares_one_digest_however_many_keys_there_are() -> None:
    class Digest(str):
        num_compared = 0
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            Digest.num_compared += 1
            return str.__eq__(self, str(other))

        __hash__ = str.__hash__

    keys = [Key(name=f"k{i}", sha256=digest_of(f"s{i}")) for i in range(5000)]
    ring = KeyRing([key.model_copy(update={"sha256": Digest(key.sha256)}) for key in keys])
    Digest.num_compared = 0
    found = ring.find("s4999")
    assert found is not None
    assert found.name == "k4999"
    assert ring.find("wrong") is None
    assert Digest.num_compared <= 5  # the hash table's collisions


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
        "[[key]]\nname = 'SECRET'",
        "[[key]]\nname = 'SECRET\\u0000'\nowner = 'SECRET\\n'",
        "[[key]]\nSECRET = 'x'",
        "[[key]]\nmodels = 'SECRET'",
        "[[key]]\nmodels = [1, 'SECRET']",
        "[[key]]\nrequests_per_minute = 'SECRET'",
        "[[key]]\ncache_scope = 'SECRET'",
        "[[key]]\nweight = ['SECRET']",
        "[key]\nSECRET = 'SECRET'",
        "key = ['SECRET']",
        "SECRET\0",
        "key = [" * 5000 + "'SECRET'",
    ],
)
def test_errors_of_a_key_file_quote_no_secret(tmp_path: Path, text: str) -> None:
    secret = new_secret()
    path = write(tmp_path, text.replace("SECRET", secret))
    with pytest.raises(ConfigError) as caught:
        load_keys(path)
    assert secret not in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    file = check_keys(path)
    assert file.problems
    assert secret not in repr((file.problems, file.warnings))


@pytest.mark.parametrize("text", ["", "  \n", "a b", "a\nb", "ü", "x" * 1025])
def test_secret_file_holds_exactly_one_secret(tmp_path: Path, text: str) -> None:
    path = tmp_path / "secret"
    path.write_text(" sk-1 \n")
    assert load_secret(path) == "sk-1"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_secret(path)
    assert not text.strip() or text not in str(caught.value)
    with pytest.raises(ConfigError, match="No such file"):
        load_secret(tmp_path / "none")


def test_file_without_keys_rejects_every_secret(tmp_path: Path) -> None:
    assert load_keys(write(tmp_path, "key = []\n")).find("x") is None
    assert KeyRing(()).find("") is None


def test_model_patterns_restrict_a_key(tmp_path: Path) -> None:
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
    assert (some.may_use_all_models, every.may_use_all_models) == (False, True)


def test_options_are_read(tmp_path: Path) -> None:
    key = load_one(
        tmp_path,
        'owner = "shop"\nrequests_per_minute = 5\ntokens_per_minute = 7\ndefault_max_tokens = 3\n'
        "max_concurrent_requests = 2\nweight = 100\nmin_priority = -2147483648\n"
        'cache_scope = "shared"\nmay_act_for_others = true',
    )
    assert (key.requests_per_minute, key.tokens_per_minute, key.default_max_tokens) == (5, 7, 3)
    assert (key.max_concurrent_requests, key.weight, key.min_priority) == (2, 100, -(2**31))
    assert (key.owner_name, key.cache_scope, key.may_act_for_others) == ("shop", "shared", True)


def test_defaults_isolate_and_grant_nothing_special(tmp_path: Path) -> None:
    key = load_one(tmp_path, "")
    assert (key.owner_name, key.cache_scope, key.weight) == ("a", "key", 1)
    assert (key.min_priority, key.may_act_for_others) == (0, False)
    assert (key.requests_per_minute, key.max_concurrent_requests) == (None, None)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[[key]", "not valid TOML"),
        ("[[key]]\nname = 'a'", r"key 1 \(line 1\): sha256: Field required"),
        ("[[key]]\nname = 'a'\nsha256 = 'sk-secret'", "sha256: 64 lowercase hexadecimal"),
        (entry("a", "x", "requests_per_minute = 0"), "requests_per_minute"),
        (entry("a", "x", "requests_per_minute = true"), "requests_per_minute"),
        (entry("a", "x", "tokens_per_minute = 5.0"), "tokens_per_minute"),
        (entry("a", "x", "default_max_tokens = 5"), "default_max_tokens needs tokens_per_minute"),
        (entry("a", "x", "weight = 0"), "weight"),
        (entry("a", "x", "weight = 101"), "weight"),
        (entry("a", "x", 'weight = "2"'), "weight"),
        (entry("a", "x", "min_priority = 2147483648"), "min_priority"),
        (entry("a", "x", 'cache_scope = "all"'), "cache_scope: Input should be 'key' or 'shared'"),
        (entry("a", "x", "may_act_for_others = 1"), "may_act_for_others"),
        (entry("a", "x", 'owner = ""'), "owner"),
        (entry("a", "x", 'owner = "two\\nlines"'), "owner: only printable"),
        (entry("a", "x", "rpm = 5"), "rpm: unknown option"),
        (entry("a", "x", "weigth = 5"), "weigth: unknown option; did you mean weight?"),
        (entry("a", "x") + entry("a", "y"), r"key 2 \(line 5\): name: key 1 \(line 1\) has the"),
        (entry("a", "x") + entry("b", "x"), "sha256"),
        ("other = 1", "other: unknown option"),
        ("[key]\nname = 'a'", r"\[\[key\]\]"),
    ],
)
def test_mistake_is_named_without_quoting_a_secret(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        load_keys(write(tmp_path, text))
    assert "sk-secret" not in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml"):
        load_keys(tmp_path / "none.toml")


def test_check_reports_every_problem_of_a_file(tmp_path: Path) -> None:
    text = (
        entry("a", "x", "weight = 0\nrpm = 1")
        + entry("b", "y")
        + entry("b", "y", "min_priority = -5\nmodels = []\nrequests_per_minute = 5")
        + "[[other]]\nx = 1\n"
    )
    path = write(tmp_path, text)
    file = check_keys(path)
    assert [problem.split(":")[0] for problem in file.problems] == [
        "other",
        "key 1 (line 1)",
        "key 1 (line 1)",
        "key 3 (line 10)",
        "key 3 (line 10)",
        "key 3 (line 10)",
    ]
    assert any("requests_per_minute" in problem for problem in file.problems)
    with pytest.raises(ConfigError, match="5 more: `chatrpc keys check` lists them"):
        load_keys(path)


def test_check_warns_of_probable_mistakes(tmp_path: Path) -> None:
    text = entry("a", "x") + entry(
        "b", "y", "models = []\nmin_priority = -1\nrequests_per_minute = 1"
    )
    file = check_keys(write(tmp_path, text))
    assert not file.problems
    [no_limit, no_model, priority] = file.warnings
    assert no_limit.startswith("key 1 (line 1): the key has no limit")
    assert "models" in no_model
    assert "min_priority" in priority


def test_lines_are_left_out_where_keys_have_no_tables_of_their_own(tmp_path: Path) -> None:
    file = check_keys(write(tmp_path, 'key = [{name = "a"}, {name = "b"}]'))
    assert [problem.split(":")[0] for problem in file.problems] == ["key 1", "key 2"]


@pytest.mark.parametrize(
    "option",
    [
        "requests_per_minute",
        "tokens_per_minute",
        "max_concurrent_requests",
        "weight",
    ],
)
def test_keys_of_one_owner_have_the_same_limits_and_weight(tmp_path: Path, option: str) -> None:
    old = entry("checkout", "x", f"{option} = 5")
    agreeing = old + entry("checkout-2", "y", f'owner = "checkout"\n{option} = 5')
    assert not check_keys(write(tmp_path, agreeing)).problems
    for other in (f"{option} = 6", ""):
        text = old + entry("checkout-2", "y", f'owner = "checkout"\n{other}')
        [problem] = check_keys(write(tmp_path, text)).problems
        assert f"key 2 (line 5): {option}" in problem


def test_no_two_secrets_are_the_same() -> None:
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert all(len(secret) > 40 for secret in secrets)
