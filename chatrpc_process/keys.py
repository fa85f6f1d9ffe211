"""API keys: who may ask for what, and how much of it.

A file in TOML names them by the hashes of their secrets::

    [[key]]
    name = "checkout"
    sha256 = "5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8"
    models = ["smollm2-*"]            # absent: all
    requests_per_minute = 600         # absent: no limit, as of the following
    tokens_per_minute = 100000
    max_concurrent_requests = 16

Secrets are random and long (`secret.py`), so a plain hash is as good as a slow one.
"""

import hmac
import re
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from chatrpc_process.secret import digest_of
from chatrpc_process.settings import ConfigError
from chatrpc_process.small_file import read_small

# What an option can be called. What stands where one should, and is none, may be a secret.
_OPTION = re.compile(r"[a-z_]{1,40}|sha256")

_SECRET = re.compile(r"[\x21-\x7e]{1,1024}")

Limit = Annotated[int, Field(ge=1, le=10**12)]


class Key(BaseModel):
    """One caller's key, without its secret."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1, max_length=128)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    models: tuple[str, ...] = ("*",)
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    max_concurrent_requests: Limit | None = None

    def may_use(self, model: str) -> bool:
        """Whether one of its patterns, as those of file names, matches the model's id or alias."""
        return any(fnmatchcase(model, pattern) for pattern in self.models)


class KeyRing:
    """The keys of a file."""

    def __init__(self, keys: tuple[Key, ...]) -> None:
        self._keys = keys

    def find(self, secret: str) -> Key | None:
        """The key whose secret this is. It takes as long whichever it is, and if it is none."""
        digest = digest_of(secret)
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    key: tuple[Key, ...] = ()


def load_keys(path: Path) -> KeyRing:
    """The keys in the file at `path`.

    Raises:
        ConfigError: it cannot be read, or two keys share a name or a secret. The words quote
            nothing of the file: there may be secrets in it, by mistake.
    """
    content = read_small(path)
    if not content.strip():  # whoever writes it has only just begun
        raise ConfigError(f"{path}: it is empty; that nobody has a key is written `key = []`")
    try:
        keys = _File.model_validate(tomllib.loads(content.decode())).key
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"\(at [a-z0-9, ]+\)$", str(error))
        raise ConfigError(f"{path}: this is no TOML {place[0] if place else ''}".rstrip()) from None
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(_shown(part) for part in first["loc"])
        raise ConfigError(f"{path}: {where}: {first['msg']}") from None
    except (ValueError, RecursionError):  # not UTF-8, nested deeply, a number of 5000 digits
        raise ConfigError(f"{path}: this is no TOML") from None
    for what in ("name", "sha256"):
        values = [getattr(key, what) for key in keys]
        if len(set(values)) < len(values):
            raise ConfigError(f"{path}: two keys have the same {what}.")
    return KeyRing(keys)


def load_secret(path: Path) -> str:
    """The one secret in the file at `path`, which a process shows where it is the caller.

    Raises:
        ConfigError: it cannot be read, or holds what no header can.
    """
    try:
        secret = read_small(path).decode().strip()
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: this is no text") from None
    if not _SECRET.fullmatch(secret):
        raise ConfigError(f"{path}: this is not one key of printable characters on one line")
    return secret


def _shown(part: int | str) -> str:
    return str(part) if isinstance(part, int) or _OPTION.fullmatch(part) else "(not shown)"
