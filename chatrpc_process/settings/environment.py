"""Distinguishes environment variables that set options from those that Kubernetes sets."""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

# https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables. A pod has
# such variables for each Service of its namespace. Those of a Service called chatrpc-service begin
# with the prefix of the service's options.
_LINK_URL = re.compile(r"(tcp|udp|sctp)://(?P<host>.+):(?P<port>[0-9]+)", re.ASCII)
_LINK_NAME = re.compile(
    r"(.+_)?(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_SERVICE = "_SERVICE_"


@dataclass(frozen=True, slots=True)
class Variables:
    """Variables that begin with the prefix of options and set no option.

    Attributes:
        links: Variables that Kubernetes sets to describe a Service.
        unknown: All other variables.
    """

    links: frozenset[str]
    unknown: frozenset[str]


def classify(environment: Mapping[str, str], prefix: str, options: Collection[str]) -> Variables:
    """Return the variables that begin with `prefix` and set no option.

    Args:
        prefix: The prefix of options' variables, in capitals. The case of variables does not
            matter.
        options: The names of options, in lower case.
    """
    upper = {name.upper(): value for name, value in environment.items()}
    links = frozenset(_links(upper, prefix))
    return Variables(
        links,
        frozenset(
            name
            for name in upper
            if name.startswith(prefix)
            and name not in links
            and name.removeprefix(prefix).lower() not in options
        ),
    )


def _links(environment: Mapping[str, str], prefix: str) -> Iterator[str]:
    for name, value in environment.items():
        rest = name.removeprefix(prefix)
        if rest == name:
            continue
        if _LINK_NAME.fullmatch(rest) or (rest.endswith("PORT") and _LINK_URL.fullmatch(value)):
            yield name
    if prefix.endswith(_SERVICE):
        yield from _links_of_namesake(environment, prefix)


def _links_of_namesake(environment: Mapping[str, str], prefix: str) -> Iterator[str]:
    """Yield the variables of a Service called `chatrpc`, such as CHATRPC_SERVICE_HOST.

    They have the same address as CHATRPC_PORT. If CHATRPC_SERVICE_HOST and CHATRPC_SERVICE_PORT
    have another address, they are options: variables of a container override those of Kubernetes.
    """
    url = _LINK_URL.fullmatch(environment.get(prefix.removesuffix(_SERVICE) + "_PORT", ""))
    if url is None:
        return
    for name, value in environment.items():
        if name.startswith(f"{prefix}PORT_") and value.isdecimal():
            yield name
    host, port = f"{prefix}HOST", f"{prefix}PORT"
    linked = url["host"].strip("[]"), url["port"]
    if (environment.get(host), environment.get(port)) == linked:
        yield from (host, port)
