"""Implements `--check`, which checks the files that options name and starts nothing."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from chatrpc_process.access.keys import check_keys
from chatrpc_process.errors import ConfigError
from chatrpc_process.settings.listener import ListenerSettings

_INVALID = 2  # the exit code of a start with invalid settings


@dataclass(frozen=True, slots=True)
class Findings:
    """The results of checks, one line each. A problem prevents a start or makes requests fail."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def attempt(self, check: Callable[[], object]) -> None:
        """Run `check` and add the ConfigError that it raises, if any, to the problems."""
        try:
            check()
        except ConfigError as error:
            self.problems.append(str(error))

    def report(self) -> int:
        """Print the findings. Return the exit code: 0 without problems, otherwise 2."""
        for line in self._lines():
            print(line, file=sys.stderr)  # noqa: T201  # the output of a command
        if self.problems:
            return _INVALID
        print("The options and the files that they name are valid.")  # noqa: T201  # as above
        return 0

    def _lines(self) -> Iterator[str]:
        yield from (f"error: {problem}" for problem in self.problems)
        yield from (f"warning: {warning}" for warning in self.warnings)


def check_listener(settings: ListenerSettings) -> Findings:
    """Check the files of API keys and of the server's certificate."""
    findings = Findings()
    path, tls = settings.api_keys, settings.tls
    if path is not None:

        def keys() -> None:
            file = check_keys(path)
            findings.problems.extend(f"{path}: {problem}" for problem in file.problems)
            findings.warnings.extend(f"{path}: {warning}" for warning in file.warnings)

        findings.attempt(keys)
    if tls is not None:

        def certificates() -> None:
            if problem := tls.read().problem():
                raise ConfigError(problem)

        findings.attempt(certificates)
    return findings
