"""Arguments and environments of deployed processes, as the processes read them."""

from collections.abc import Mapping

from chatrpc_process.settings.process import ProcessSettings
from gateway_http.config import Settings as GatewaySettings
from service.config import ServiceSettings

PREFIXES: dict[type[ProcessSettings], str] = {
    ServiceSettings: "CHATRPC_SERVICE_",
    GatewaySettings: "CHATRPC_GATEWAY_",
}


def options(kind: type[ProcessSettings]) -> set[str]:
    """Return the names of all options on the command line."""
    return {name.replace("_", "-") for name in kind.model_fields}


def old_options(kind: type[ProcessSettings]) -> set[str]:
    """Return the old names of renamed options on the command line."""
    return {name.replace("_", "-") for name in kind.new_names}


def option(argument: str) -> str:
    name = argument.removeprefix("--").partition("=")[0]
    return name.removeprefix("no-") if "=" not in argument else name


def argument(arguments: list[str], name: str) -> str:
    """Return the value of an option that is given once."""
    (found,) = (each for each in arguments if option(each) == name)
    return found.partition("=")[2]


def parsed(kind: type[ProcessSettings], arguments: list[str]) -> ProcessSettings:
    """Return the settings of a process with these arguments. Unknown arguments are an error."""
    return kind.load(arguments)


def unknown_variables(environment: Mapping[str, str]) -> set[str]:
    """Return the variables that begin with `CHATRPC_` but are not settings."""
    known = {
        prefix + name.replace("-", "_").upper()
        for kind, prefix in PREFIXES.items()
        for name in options(kind)
    }
    return {name for name in environment if name.startswith("CHATRPC_")} - known
