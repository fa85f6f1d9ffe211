"""A parser of container files, for the part of their language that ours may use."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

INSTRUCTIONS = {
    "ARG", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "RUN",
    "STOPSIGNAL", "USER", "WORKDIR",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Instruction:
    name: str
    text: str  # the text after the name, with continued lines joined

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text)

    @property
    def pairs(self) -> dict[str, str]:
        """The keys and values of ENV, LABEL or ARG, without ARGs that have no value."""
        return dict(word.split("=", 1) for word in self.words if "=" in word)


@dataclass(slots=True)
class Stage:
    base: str
    name: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, name: str) -> list[Instruction]:
        return [instruction for instruction in self.instructions if instruction.name == name]

    def one(self, name: str) -> Instruction:
        (instruction,) = self.all(name)
        return instruction

    @property
    def environment(self) -> dict[str, str]:
        return {key: value for env in self.all("ENV") for key, value in env.pairs.items()}


@dataclass(slots=True)
class Dockerfile:
    arguments: dict[str, str]  # the ARGs before the first stage
    stages: list[Stage]

    @property
    def final(self) -> Stage:
        return self.stages[-1]


def parse(path: Path) -> Dockerfile:
    """Parse a container file. Raise AssertionError if it has an unknown instruction."""
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for instruction in _instructions(path):
        assert instruction.name in INSTRUCTIONS, instruction
        if instruction.name == "FROM":
            base, _, name = instruction.text.partition(" AS ")
            stages.append(Stage(base, name or str(len(stages))))
        elif stages:
            stages[-1].instructions.append(instruction)
        else:
            assert instruction.name == "ARG"
            arguments |= instruction.pairs
    return Dockerfile(arguments, stages)


def _instructions(path: Path) -> Iterator[Instruction]:
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            name, _, text = line.strip().partition(" ")
            yield Instruction(name, re.sub(r"\s{2,}", " ", text).strip())


def exec_form(text: str) -> list[str]:
    """Return the words of a command in JSON, which runs without a shell."""
    words = json.loads(text)
    assert isinstance(words, list)
    return [str(word) for word in words]


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """Replace `${NAME}` by variables, as a builder does outside of RUN."""
    return re.sub(r"\$\{(\w+)\}", lambda match: variables[match[1]], text)


def in_context(path: str, ignore: Path) -> bool:
    """Return True if `.dockerignore` allows the file `path` in the build context.

    It supports literal paths, `*` for everything, and `**/name`. The last matching line wins.
    """
    is_in = True
    for line in ignore.read_text().splitlines():
        pattern = line.strip().removeprefix("!")
        if not pattern or pattern.startswith("#"):
            continue
        if pattern.startswith("**/"):
            matches = pattern.removeprefix("**/") in path.split("/")
        else:
            matches = pattern in {"*", path} or path.startswith(pattern + "/")
        if matches:
            is_in = line.strip().startswith("!")
    return is_in
