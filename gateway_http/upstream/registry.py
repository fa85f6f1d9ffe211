"""The registry: the models that the gateway serves, their names, and the service of each.

A TOML file::

    [[model]]
    name = "smollm2"                               # the name in requests and responses
    aliases = ["gpt-4o-mini"]                      # further names in requests
    target = "dns:///smollm2.chatrpc.svc:50051"    # any gRPC target
    upstream_model = "smollm2-135m-instruct"       # the service's name for it; default: `name`

An entry with `model` instead of `target` is a model that the gateway hosts::

    [[model]]
    name = "qwen3"
    model = "models/Qwen3-0.6B"                    # the service's option `--model`

docs/routing.md documents all of its fields, docs/hosted_models.md those of hosted models.
"""

import ipaddress
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    model_validator,
)

from chatrpc_process.access.keys import load_secret
from chatrpc_process.errors import ConfigError
from chatrpc_process.files.small_file import read_small
from chatrpc_process.tls import Validity
from gateway_http.upstream.affinity import Affinity, PrefixAffinity, SessionAffinity
from gateway_http.upstream.connection import Connection, Tls, read_tls, tls_validities
from gateway_http.upstream.service_config import (
    DEFAULT_BALANCE,
    Balance,
    OutlierDetection,
    service_config,
)

# Names may have letters of any script, and slashes inside, as the ids of model hubs have.
_Name = Annotated[
    str, Field(max_length=256, pattern=r"^[^\s\x00-\x1f\x7f/]+(/[^\s\x00-\x1f\x7f/]+)*$")
]


def _checked_target(target: str) -> str:
    """Return `target`, checked: on an invalid target, gRPC fails every call with UNKNOWN.

    Raises:
        ValueError: The target has an address that gRPC cannot parse.
    """
    scheme, _, addresses = target.partition(":")
    if scheme in {"ipv4", "ipv6"}:
        for address in addresses.split(","):
            host, _, port = address.strip("/").rpartition(":")
            try:
                known = ipaddress.ip_address(host.strip("[]"))
            except ValueError:
                raise ValueError(f"'{address}' does not begin with an IP address") from None
            if f"ipv{known.version}" != scheme or not port.isdecimal() or int(port) > 65535:
                raise ValueError(f"'{address}' is not an IPv{scheme[-1]} address and a port")
    return target


class _OutlierDetection(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    interval_s: Annotated[float, Field(ge=0.01, le=3600)] = 10
    failure_percentage: Annotated[int, Field(ge=1, le=100)] = 85
    request_volume: Annotated[int, Field(ge=1, le=10**6)] = 10
    minimum_hosts: Annotated[int, Field(ge=1, le=1000)] = 2
    base_ejection_time_s: Annotated[float, Field(ge=0.01, le=3600)] = 30
    max_ejection_percent: Annotated[int, Field(ge=1, le=100)] = 50


# The fields of an entry with a target, and of one that the gateway hosts.
_SERVICE_FIELDS = frozenset(
    ("target", "upstream_model", "balance", "affinity", "prefix_chars", "outlier_detection")
) | {"ca", "certificate", "key", "api_key_file"}
_HOSTED_FIELDS = frozenset(("model", "arguments", "port", "memory", "idle_timeout_s"))


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: _Name
    aliases: tuple[_Name, ...] = ()
    target: (
        Annotated[
            str, Field(pattern=r"^[\x21-\x7e]+$", max_length=4096), AfterValidator(_checked_target)
        ]
        | None
    ) = None
    model: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    arguments: Annotated[tuple[str, ...], Field(max_length=100)] = ()
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    memory: Annotated[ByteSize, Field(ge=0)] | None = None
    idle_timeout_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    upstream_model: _Name | None = None
    shutdown_date: Annotated[date, Strict()] | None = None
    balance: Balance = DEFAULT_BALANCE
    affinity: Affinity | None = None
    prefix_chars: Annotated[int, Field(ge=1, le=10**6)] | None = None
    outlier_detection: _OutlierDetection | None = None
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    api_key_file: Path | None = None

    @model_validator(mode="after")
    def _model_has_one_origin(self) -> Self:
        if (self.target is None) == (self.model is None):
            raise ValueError("either target or model must be set")
        is_hosted = self.model is not None
        wrong = self.model_fields_set & (_SERVICE_FIELDS if is_hosted else _HOSTED_FIELDS)
        if wrong:
            needed = "target" if is_hosted else "model"
            raise ValueError(f"{min(wrong)} can only be set together with {needed}")
        return self

    @model_validator(mode="after")
    def _fields_go_together(self) -> Self:
        if (self.balance == "ring_hash") != (self.affinity is not None):
            raise ValueError("balance = 'ring_hash' and affinity must be set together")
        if self.prefix_chars is not None and self.affinity != "prefix":
            raise ValueError("prefix_chars needs affinity = 'prefix'")
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key must be set together")
        if self.certificate is not None and self.ca is None:
            raise ValueError("certificate needs ca")
        return self


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: Annotated[tuple[_Model, ...], Field(min_length=1, max_length=1000)]


@dataclass(frozen=True)
class RegisteredModel:
    """A model of the registry, and the service that serves it.

    Attributes:
        connection: The connection to the service.
        name: The name that clients use and that responses contain.
        aliases: Further names that clients may use.
        upstream_model: The name that the service uses.
        affinity: The rule that sends related calls to the same replica; None if there is none.
        shutdown_date: The day after which the model may no longer be served, for clients; None if
            none is announced.
    """

    connection: Connection
    name: str
    aliases: tuple[str, ...] = ()
    upstream_model: str = ""
    affinity: SessionAffinity | PrefixAffinity | None = None
    shutdown_date: date | None = None

    @property
    def label(self) -> str:
        """The value of the label `model` in metrics."""
        return self.name

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.aliases)

    def upstream_name(self, name: str) -> str:  # noqa: ARG002  # the same signature as `WholeService`
        """Return the service's name of the model that a client calls `name`."""
        return self.upstream_model or self.name

    def public_name(self, upstream_name: str) -> str:  # noqa: ARG002
        """Return the name for clients of the model that the service calls `upstream_name`."""
        return self.name


@dataclass(frozen=True)
class HostedModel:
    """A model whose service the gateway runs itself, on this machine.

    Attributes:
        name: The name that clients use and that responses contain.
        model: The value of the service's option `--model`.
        aliases: Further names that clients may use.
        arguments: Further options of the service.
        port: The port on which the service listens; None if it is any free one.
        memory_bytes: The memory that it counts for; None if it is estimated, and then measured.
        idle_timeout_s: Time without requests after which it is unloaded, and 0 if it never is;
            None if it is that of the gateway's settings.
        shutdown_date: As in `RegisteredModel`.
    """

    name: str
    model: str
    aliases: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    port: int | None = None
    memory_bytes: int | None = None
    idle_timeout_s: float | None = None
    shutdown_date: date | None = None

    @property
    def label(self) -> str:
        """The value of the label `model` in metrics."""
        return self.name

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.aliases)

    def upstream_name(self, name: str) -> str:  # noqa: ARG002  # the same signature as `WholeService`
        """Return the service's name of the model that a client calls `name`."""
        return self.name

    def public_name(self, upstream_name: str) -> str:  # noqa: ARG002
        """Return the name for clients of the model that the service calls `upstream_name`."""
        return self.name


@dataclass(frozen=True)
class WholeService:
    """A service with all of its models, under the service's own names for them."""

    connection: Connection

    label = "*"
    names: tuple[str, ...] = ()
    affinity: None = None

    def upstream_name(self, name: str) -> str:
        """Return `name`."""
        return name

    def public_name(self, upstream_name: str) -> str:
        """Return `upstream_name`."""
        return upstream_name


Entry = RegisteredModel | HostedModel | WholeService
"""An entry of the routing table."""


@dataclass(frozen=True)
class Registry:
    """The content of a registry file.

    Attributes:
        files: The files of certificates and keys that it names.
        validities: The periods in which the certificates among them are valid.
    """

    entries: tuple[RegisteredModel | HostedModel, ...]
    files: tuple[Path, ...] = ()
    validities: tuple[Validity, ...] = ()


def load_registry(path: Path) -> Registry:
    """Read a registry. Paths in it are relative to its directory.

    Raises:
        ConfigError: The file or a file that it names cannot be read, or two models share a
            name or a port.
    """
    try:
        models = _File.model_validate(tomllib.loads(read_small(path).decode())).model
    except ValidationError as error:
        first = error.errors(include_input=False)[0]  # the input may contain a secret
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{path}: {where}: {first['msg']}") from None
    except RecursionError:
        raise ConfigError(f"{path}: it is nested too deeply") from None
    except ValueError as error:  # not UTF-8, not TOML, or a number of 5000 digits
        raise ConfigError(f"{path}: {error}") from None
    _check_names(path, models)
    _check_ports(path, models)
    files = tuple(file for model in models for file in _files(model, path.parent))
    entries = tuple(_entry(path, model) for model in models)
    return Registry(entries, files, tuple(_validities(path, models)))


def hosted_models(models: Sequence[str]) -> tuple[HostedModel, ...]:
    """Return the entries of models that are given as `MODEL` or `NAME=MODEL`.

    Without a name, a path is called by its last part without `.gguf`, and another model as it is.

    Raises:
        ConfigError: A name is invalid, or two models share one.
    """
    entries: dict[str, HostedModel] = {}
    for given in models:
        name, separator, model = given.partition("=")
        if not separator or Path(given).exists():
            model = given
            is_path = Path(given).exists() or given.endswith(".gguf")
            name = Path(given).absolute().name.removesuffix(".gguf") if is_path else given
        try:
            entry = _Model(name=name, model=model)
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            raise ConfigError(f"models: {given}: {first['loc'][0]}: {first['msg']}") from None
        if name in entries:
            raise ConfigError(
                f"models: two models are called '{name}'. Write NAME={model} to name one of them."
            )
        entries[name] = HostedModel(entry.name, model)
    return tuple(entries.values())


def _check_names(path: Path, models: tuple[_Model, ...]) -> None:
    owners: dict[str, int] = {}
    for i, model in enumerate(models):
        for name in (model.name, *model.aliases):
            if name in owners:
                raise ConfigError(f"{path}: model.{i}: '{name}' is model.{owners[name]}'s already.")
            owners[name] = i


def _check_ports(path: Path, models: tuple[_Model, ...]) -> None:
    owners: dict[int, int] = {}
    for i, model in enumerate(models):
        if model.port is not None and owners.setdefault(model.port, i) != i:
            raise ConfigError(
                f"{path}: model.{i}.port: {model.port} is model.{owners[model.port]}'s already."
            )


def _files(model: _Model, directory: Path) -> Iterator[Path]:
    for file in (model.ca, model.certificate, model.key, model.api_key_file):
        if file is not None:
            yield directory / file


def _validities(path: Path, models: tuple[_Model, ...]) -> Iterator[Validity]:
    for model in models:
        if model.ca is not None:
            own = None if model.certificate is None else path.parent / model.certificate
            yield from tls_validities(path.parent / model.ca, own)


def _entry(path: Path, model: _Model) -> RegisteredModel | HostedModel:
    if model.model is not None:
        return _hosted(path, model, model.model)
    upstream_model = model.upstream_model or model.name
    outliers = model.outlier_detection
    config = service_config(
        model.balance,
        upstream_model,
        None if outliers is None else OutlierDetection(**outliers.model_dump()),
    )
    return RegisteredModel(
        Connection(
            model.target or "", upstream_model, config, _tls(path, model), _api_key(path, model)
        ),
        model.name,
        model.aliases,
        upstream_model,
        _affinity(model),
        model.shutdown_date,
    )


def _hosted(path: Path, entry: _Model, model: str) -> HostedModel:
    local = path.parent / model  # a name or the id of a hub is no path
    return HostedModel(
        entry.name,
        str(local.absolute()) if local.exists() else model,
        entry.aliases,
        entry.arguments,
        entry.port,
        None if entry.memory is None else int(entry.memory),
        entry.idle_timeout_s,
        entry.shutdown_date,
    )


def _affinity(model: _Model) -> SessionAffinity | PrefixAffinity | None:
    match model.affinity:
        case None:
            return None
        case "session":
            return SessionAffinity()
        case "prefix":
            chars = model.prefix_chars
            return PrefixAffinity() if chars is None else PrefixAffinity(chars)


def _tls(path: Path, model: _Model) -> Tls | None:
    if model.ca is None:
        return None
    ca, *own = [path.parent / file for file in (model.ca, model.certificate, model.key) if file]
    try:
        return read_tls(ca, *own) if own else read_tls(ca, None, None)
    except ConfigError as error:
        raise ConfigError(f"{path}: model '{model.name}': {error}") from None


def _api_key(path: Path, model: _Model) -> str | None:
    if model.api_key_file is None:
        return None
    try:
        return load_secret(path.parent / model.api_key_file)
    except ConfigError as error:
        raise ConfigError(f"{path}: model '{model.name}': api_key_file: {error}") from None
