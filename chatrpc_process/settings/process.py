"""Settings that both processes have, and how settings are read.

The command line takes precedence over the environment, the environment over a TOML file, and the
file over the defaults.
"""

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import structlog
from pydantic import Field, PrivateAttr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    CliImplicitFlag,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from chatrpc_process.errors import ConfigError
from chatrpc_process.logs.configuration import LogFormat, LogLevel
from chatrpc_process.settings.environment import Variables, classify
from chatrpc_process.settings.renamed import old_names_in, rename_arguments, rename_keys

__all__ = ["ConfigError", "ProcessSettings"]

log = structlog.get_logger(__name__)


class ProcessSettings(BaseSettings):
    """The options of every process. A subclass adds its own options and its `env_prefix`."""

    model_config = SettingsConfigDict(
        cli_kebab_case=True, cli_hide_none_type=True, extra="forbid", frozen=True
    )

    config: Annotated[Path | None, Field(description="Path of a TOML file with options.")] = None
    check: Annotated[
        CliImplicitFlag[bool],
        Field(
            description="Only check the options and the files that they name. The process exits "
            "with code 0 if they are valid, and with 2 otherwise."
        ),
    ] = False
    log_level: Annotated[
        LogLevel, Field(description="Lowest level of the log lines that are written.")
    ] = "info"
    log_format: Annotated[
        LogFormat,
        Field(description="Format of log lines: `text` for people or `json` for machines."),
    ] = "text"
    loop_timeout_s: Annotated[
        float,
        Field(
            gt=0,
            description="Maximum time in seconds for which the event loop may be blocked. After "
            "that, the process logs a stack and exits with code 1.",
        ),
    ] = 60.0
    otlp_endpoint: Annotated[
        str | None,
        Field(
            pattern="^https?://.",
            description="Base URL of an OpenTelemetry collector that receives traces over OTLP, "
            "such as `http://collector:4318`. This option needs the extra `otel`. By "
            "default no spans are recorded.",
        ),
    ] = None
    # Maps the old name of each renamed option to its new name. Old names still set the options.
    new_names: ClassVar[Mapping[str, str]] = {}
    _links: frozenset[str] = PrivateAttr(frozenset())
    _old_names: frozenset[str] = PrivateAttr(frozenset())

    @classmethod
    def load(cls, arguments: list[str]) -> Self:
        """Read the settings from every source.

        Raises:
            ConfigError: An option or a variable with the prefix of options is unknown, a value is
                out of range, or the file cannot be read.
            SystemExit: The arguments ask for help or cannot be parsed.
        """
        try:
            renamed = rename_arguments(arguments, cls.new_names)
            settings = cls(_cli_parse_args=renamed)  # type: ignore[call-arg]  # see BaseSettings
            old_names = cls._old_names_in_use(arguments, settings.config)
        except ValidationError as error:
            wrong = [_described(each["loc"], each["msg"]) for each in error.errors()]
            raise ConfigError("; ".join(wrong)) from None
        except (SettingsError, OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(str(error)) from None
        variables = cls._variables()
        if variables.unknown:
            raise ConfigError("; ".join(map(cls._unknown, sorted(variables.unknown))))
        settings._links = variables.links
        settings._old_names = frozenset(old_names)
        return settings

    def log_warnings(self) -> None:
        """Log a warning for ignored environment variables, and one for each old option name.

        A variable is ignored if Kubernetes has set it and its name is that of an option.
        """
        if self._links:
            log.warning("environment_variables_ignored", names=sorted(self._links))
        for old in sorted(self._old_names):
            log.warning("option_name_deprecated", name=old, new_name=self.new_names[old])

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # we do not use this source
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        links = cls._variables().links
        if isinstance(env_settings, EnvSettingsSource):
            options = {
                name: value
                for name, value in env_settings.env_vars.items()
                if name.upper() not in links
            }
            env_settings.env_vars = rename_keys(options, cls.new_names, cls._variable)
        return init_settings, env_settings, _TomlFile(settings_cls, cls.new_names)

    @classmethod
    def _variables(cls) -> Variables:
        options = {*cls.model_fields, *cls.new_names}
        return classify(os.environ, cls.model_config["env_prefix"], options)

    @classmethod
    def _variable(cls, option: str) -> str:
        """Return the environment variable of an option."""
        return cls.model_config["env_prefix"] + option.upper()

    @classmethod
    def _old_names_in_use(cls, arguments: list[str], config: Path | None) -> set[str]:
        """Return the old names of options that the command line, environment or file uses."""
        variables = {name.upper() for name in os.environ}
        file = _read_toml(config) if config else {}
        return old_names_in(arguments, cls.new_names) | {
            old for old in cls.new_names if cls._variable(old) in variables or old in file
        }

    @classmethod
    def _unknown(cls, variable: str) -> str:
        name = variable.removeprefix(cls.model_config["env_prefix"]).lower()
        similar = difflib.get_close_matches(name, cls.model_fields, n=1)
        hint = f"; did you mean {cls._variable(similar[0])}?" if similar else ""
        return f"{variable} is not an option{hint}"


def _described(location: tuple[int | str, ...], message: str) -> str:
    """Return the name of the option and the reason why its value is invalid.

    pydantic's messages do not quote the value, which may be a secret.
    """
    reason = message.removeprefix("Value error, ")
    return f"{'.'.join(map(str, location))}: {reason}" if location else reason


def _read_toml(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text())


class _TomlFile(PydanticBaseSettingsSource):
    """A source of options: the file that the command line or the environment names."""

    def __init__(self, settings_cls: type[BaseSettings], new_names: Mapping[str, str]) -> None:
        super().__init__(settings_cls)
        self._new_names = new_names

    def __call__(self) -> dict[str, Any]:
        path = self.current_state.get("config")
        return rename_keys(_read_toml(Path(path)), self._new_names) if path else {}

    def get_field_value(
        self,
        field: FieldInfo,  # noqa: ARG002
        field_name: str,
    ) -> tuple[Any, str, bool]:
        """Implement an abstract method that is not used: all values are returned at once."""
        return None, field_name, False
