"""API keys, with the models that they may use and their limits.

A TOML file lists the keys by the hashes of their secrets::

    [[key]]
    name = "checkout"
    sha256 = "5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8"
    models = ["smollm2-*"]
    tokens_per_minute = 100000

docs/operations.md, "Access", describes every option. Secrets are random and long (`secret.py`), so
a plain hash protects them as well as a slow one would.
"""

import difflib
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from chatrpc_process.access.secret import digest_of
from chatrpc_process.errors import ConfigError
from chatrpc_process.files.small_file import read_small

# The possible spellings of an option's name. Any other text at this position may be a secret, so no
# error message quotes it.
_OPTION = re.compile(r"[a-z_]{1,40}|sha256")
_SECRET = re.compile(r"[\x21-\x7e]{1,1024}")
_KEY_TABLE = re.compile(r"[ \t]*\[\[[ \t]*key[ \t]*\]\]")

# Options that belong to an owner. All keys of one owner must have the same values.
_OF_OWNER = ("requests_per_minute", "tokens_per_minute", "max_concurrent_requests", "weight")


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("only printable characters are allowed")
    return text


def _digest(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError("64 lowercase hexadecimal digits are expected, the SHA-256 of the secret")
    return text


Name = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_printable)]
Pattern = Annotated[str, AfterValidator(_printable)]
Limit = Annotated[int, Field(ge=1, le=10**12)]
Weight = Annotated[int, Field(ge=1, le=100)]
Priority = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]


class Key(BaseModel):
    """A key of a caller, without its secret.

    Attributes:
        owner: The owner of limits, turns and cached prompts. None means the key's own name.
        default_max_tokens: Output limit in tokens of a chat completion that sets none, for keys
            with `tokens_per_minute`. None means 1/32 of `tokens_per_minute`, but at least 1024 and
            at most 4096.
        weight: Number of turns of the owner in each round of all owners' turns.
        min_priority: The lowest (most urgent) `priority` that a request may set.
        cache_scope: `key` shares cached prompts among the owner's keys, `shared` among all keys.
        may_act_for_others: If True, calls may name another caller (`chatrpc.v1.CallerInfo`).
    """

    # It is strict, so that values of another type are rejected, such as `true` for a number.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Name
    sha256: Annotated[str, AfterValidator(_digest)]
    owner: Name | None = None
    models: Annotated[tuple[Pattern, ...], Field(strict=False)] = ("*",)  # a list in TOML
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    default_max_tokens: Limit | None = None
    max_concurrent_requests: Limit | None = None
    weight: Weight = 1
    min_priority: Priority = 0
    cache_scope: Literal["key", "shared"] = "key"
    may_act_for_others: bool = False

    @property
    def owner_name(self) -> str:
        """Return the owner's name. A key without an owner is its own owner."""
        return self.owner or self.name

    @property
    def may_use_all_models(self) -> bool:
        """True if the key may use every model."""
        return "*" in self.models

    def may_use(self, model: str) -> bool:
        """Return True if a shell-style pattern of the key matches `model`, an id or alias."""
        return any(fnmatchcase(model, pattern) for pattern in self.models)

    @model_validator(mode="after")
    def _output_default_has_a_limit(self) -> Self:
        if self.default_max_tokens is not None and self.tokens_per_minute is None:
            raise ValueError("default_max_tokens needs tokens_per_minute")
        return self


class KeyRing:
    """The keys of a file."""

    def __init__(self, keys: Sequence[Key]) -> None:
        self._keys = {key.sha256: key for key in keys}

    def find(self, secret: str) -> Key | None:
        """Return the key with this secret, or None.

        The duration does not depend on the number of keys.
        """
        # The duration may depend on the number of leading bits that the SHA-256 of `secret` shares
        # with a stored hash. An attacker cannot use that, since hashes cannot be chosen.
        return self._keys.get(digest_of(secret))


@dataclass(frozen=True, slots=True)
class KeyFile:
    """The content of a key file, checked.

    Attributes:
        keys: The valid keys.
        problems: The reasons why the file is invalid, one line each.
        warnings: Valid entries that are probably mistakes, one line each.
    """

    keys: tuple[Key, ...]
    problems: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def load_keys(path: Path) -> KeyRing:
    """Load the keys in the file at `path`.

    Raises:
        ConfigError: The file cannot be read or is invalid. The text quotes nothing of the file,
            which may contain secrets by mistake.
    """
    file = check_keys(path)
    if file.problems:
        more = len(file.problems) - 1
        suffix = f" ({more} more: `chatrpc keys check` lists them)" if more else ""
        raise ConfigError(f"{path}: {file.problems[0]}{suffix}")
    return KeyRing(file.keys)


def check_keys(path: Path) -> KeyFile:
    """Read and check the key file at `path`. Problems are collected, not raised.

    Raises:
        ConfigError: The file cannot be read.
    """
    return parse_keys(read_small(path))


def parse_keys(content: bytes) -> KeyFile:
    """Check the content of a key file. No problem and no warning quotes a value of the file."""
    if not content.strip():  # a program may have opened the file and not written it yet
        return KeyFile((), ("The file is empty. A file without any key contains `key = []`.",))
    try:
        text = content.decode()
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        position = re.search(r"\(at [a-z0-9, ]+\)$", str(error))
        return KeyFile((), (f"This is not valid TOML {position[0] if position else ''}".rstrip(),))
    except (ValueError, RecursionError):  # not UTF-8, too deep, or a number of 5000 digits
        return KeyFile((), ("This is not valid TOML",))
    entries = document.pop("key", [])
    problems = [f"{_shown(name)}: unknown option" for name in document]
    if not isinstance(entries, list):
        return KeyFile((), (*problems, "key: write each key as a table [[key]]"))
    labels = list(_labels(text, len(entries)))
    keys: list[tuple[str, Key]] = []
    for label, entry in zip(labels, entries, strict=True):
        try:
            keys.append((label, Key.model_validate(entry)))
        except ValidationError as error:
            problems += [
                f"{label}: {_described(each)}" for each in error.errors(include_input=False)
            ]
    problems += [*_duplicates(keys), *_disagreements(keys)]
    return KeyFile(tuple(key for _, key in keys), tuple(problems), tuple(_warnings(keys)))


def load_secret(path: Path) -> str:
    """Load the secret that a process sends with its calls, from the file at `path`.

    Raises:
        ConfigError: The file cannot be read, or its content cannot be sent in a header.
    """
    try:
        secret = read_small(path).decode().strip()
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: the file is not text in UTF-8.") from None
    if not _SECRET.fullmatch(secret):
        raise ConfigError(f"{path}: the file must contain one key of printable characters.")
    return secret


def _labels(text: str, num_keys: int) -> Iterator[str]:
    """Yield a label of each key: its number and, if each key has its own table, its line."""
    lines = [i for i, line in enumerate(text.splitlines(), 1) if _KEY_TABLE.match(line)]
    for i in range(num_keys):
        yield f"key {i + 1} (line {lines[i]})" if len(lines) == num_keys else f"key {i + 1}"


def _described(error: Any) -> str:
    """Describe an error of pydantic. Its messages quote no input."""
    where = ".".join(_shown(part) for part in error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = "unknown option"
        if similar := difflib.get_close_matches(str(error["loc"][-1]), Key.model_fields, n=1):
            message += f"; did you mean {similar[0]}?"
    return f"{where}: {message}" if where else message


def _shown(part: int | str) -> str:
    return str(part) if isinstance(part, int) or _OPTION.fullmatch(part) else "(not shown)"


def _duplicates(keys: Sequence[tuple[str, Key]]) -> Iterator[str]:
    for option in ("name", "sha256"):
        seen: dict[str, str] = {}
        for label, key in keys:
            first = seen.setdefault(getattr(key, option), label)
            if first != label:
                yield f"{label}: {option}: {first} has the same"


def _disagreements(keys: Sequence[tuple[str, Key]]) -> Iterator[str]:
    owners: dict[str, tuple[str, Key]] = {}
    for label, key in keys:
        first_label, first = owners.setdefault(key.owner_name, (label, key))
        for option in _OF_OWNER:
            if getattr(key, option) != getattr(first, option):
                yield (
                    f"{label}: {option}: {first_label} has the same owner and another value. "
                    "Limits and weight belong to the owner."
                )


def _warnings(keys: Sequence[tuple[str, Key]]) -> Iterator[str]:
    for label, key in keys:
        limits = (key.requests_per_minute, key.tokens_per_minute, key.max_concurrent_requests)
        if limits == (None, None, None):
            yield f"{label}: the key has no limit"
        if not key.models:
            yield f"{label}: models: the key may use no model"
        if key.min_priority < 0:
            yield f"{label}: min_priority: requests of this key may overtake those of all others"
