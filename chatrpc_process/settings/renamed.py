"""Old names of options. They still set their options until a later release removes them."""

from collections.abc import Callable, Mapping
from typing import Any

from chatrpc_process.errors import ConfigError


def rename_arguments(arguments: list[str], new_names: Mapping[str, str]) -> list[str]:
    """Return the command line with old names of options replaced by their new ones.

    Args:
        new_names: Maps the old name of an option to its new name, such as `drain_timeout_s`.

    Raises:
        ConfigError: An option has different values under its old and its new name.
    """
    return [_renamed_argument(each, new_names) for each in _checked(arguments, new_names)]


def rename_keys(
    values: Mapping[str, Any], new_names: Mapping[str, str], name: Callable[[str], str] = str
) -> dict[str, Any]:
    """Return options by name, with old names replaced by new names.

    Args:
        new_names: Maps the old name of an option to its new name.
        name: Returns the spelling of an option in this source. The keys are in lower case.

    Raises:
        ConfigError: An option has different values under its old and its new name.
    """
    renamed = dict(values)
    for old, new in new_names.items():
        old_key, new_key = name(old).lower(), name(new).lower()
        if old_key not in renamed:
            continue
        value = renamed.pop(old_key)
        _check_equal(name(old), value, name(new), renamed.get(new_key, value))
        renamed[new_key] = value
    return renamed


def old_names_in(arguments: list[str], new_names: Mapping[str, str]) -> set[str]:
    """Return the old names of options that a command line uses."""
    flags = {argument.partition("=")[0] for argument in arguments}
    return {old for old in new_names if _flag(old) in flags}


def _checked(arguments: list[str], new_names: Mapping[str, str]) -> list[str]:
    given: dict[str, str] = {}
    for index, argument in enumerate(arguments):
        flag, has_value, value = argument.partition("=")
        given[flag] = value if has_value else "".join(arguments[index + 1 : index + 2])
    for old, new in new_names.items():
        if _flag(old) in given:
            value = given[_flag(old)]
            _check_equal(_flag(old), value, _flag(new), given.get(_flag(new), value))
    return arguments


def _renamed_argument(argument: str, new_names: Mapping[str, str]) -> str:
    flag, has_value, value = argument.partition("=")
    for old, new in new_names.items():
        if flag == _flag(old):
            return f"{_flag(new)}{has_value}{value}"
    return argument


def _check_equal(old: str, old_value: Any, new: str, new_value: Any) -> None:
    if old_value != new_value:
        raise ConfigError(
            f"{new} and {old} have different values. {old} is the old name of {new}: remove it."
        )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
