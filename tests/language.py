"""Check the language of docstrings, comments, messages, options, metrics and docs.

`python -m tests.language [PATH...]` prints every violation as FILE:LINE, in the given files and
folders or in the whole repository. Quotations in backticks and code blocks are not checked.
"""

import ast
import re
import sys
import tokenize
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path, PurePosixPath

import typer
from prometheus_client import CollectorRegistry

import bench.__main__
import chatrpc_cli.__main__
from chatrpc_process.reload_metrics import ReloadMetrics
from gateway_http.config import Settings as GatewaySettings
from gateway_http.metrics import HostedModelStatus
from gateway_http.metrics import Metrics as GatewayMetrics
from service.config import ServiceSettings
from service.domain.engine import EngineStats
from service.metrics import Metrics as ServiceMetrics

ROOT = Path(__file__).parent.parent
PACKAGES = ("service", "gateway_http", "chatrpc_process", "chatrpc_cli", "bench")
DOCS = ("README.md", "ARCHITECTURE.md", "docs")

# Phrases that have another meaning in a file and are right there: (file, phrase in lower case).
ALLOWED: frozenset[tuple[str, str]] = frozenset()

_ARTICLES = (
    "a|an|the|this|its|their|his|each|every|no|any|one|own|first|last|whole|long|short|next|"
    "same|such|of|for|in|without|with|finished|some|more|other|two|three|many|greedy|partial"
)
# Words that prose must not use, and their replacements. Patterns match whole words, in upper and
# lower case.
GLOSSARY: tuple[tuple[str, str], ...] = (
    ("thoughts", "reasoning"),
    ("lean decoders?", "native decoder"),
    (r"(?<!connection )(?<!connections )refus(?:e|es|ed|ing)(?! connections?)", "reject"),
    ("tells?|told|telling", "return, report, state, send, distinguish"),
    ("hears?|heard", "receive"),
    ("patience", "timeout"),
    ("in peace", "no change"),
    ("(?:stands?|stood|standing) aside", "wait"),
    ("(?:gives?|gave|given|giving) back", "preempt, evict, free, return"),
    ("(?:let|lets|letting) go", "free, release"),
    ("(?:bears?|bore|borne|bearing) (?:it |them |this )?out", "accept"),
    ("(?:came|comes?|coming) true", "is accepted"),
    ("guess(?:es|ed|ing)?", "draft, estimate"),
    ("nobody|somebody|anybody|everybody|whoever", "no client, a client, the caller"),
    ("alone", "only, by itself"),
    (
        r"behind(?! NAT| (?:an?|the|your) (?:[\w-]+ )?(?:proxy|balancer|gateway|ingress))",
        "after; behind only of a proxy",
    ),
    (rf"(?:{_ARTICLES}) answers?", "response, completion, output"),
    ("wants?", "need, request"),
    ("wish|wishes|wished", "request"),
    ("knows?", "is known, has, contains"),
    ("says?|said|saying", "state, report, specify"),
    ("what holds", "what is accepted, what is valid"),
    ("will not be had|busy elsewhere", "unavailable, overloaded"),
    ("keeps? an eye on", "watch"),
    ("calls? of (?:a )?functions?", "tool call"),
    ("answers? in a form", "structured output"),
    ("(?:has|have|had) the last word", "take precedence"),
    ("(?:reads?|reading) (?:a|the|its|their) prompts?", "prefill"),
)
_PATTERNS = tuple(
    (re.compile(rf"(?<![\w-])(?:{phrase})(?![\w-])", re.IGNORECASE), instead)
    for phrase, instead in GLOSSARY
)
_ANY_PHRASE = re.compile("|".join(phrase for phrase, _ in GLOSSARY), re.IGNORECASE)

_FIRST_WORDS = frozenset(
    [
        *("Whether", "What", "Whatever", "Those", "These", "That", "This", "Which", "Whose"),
        *("Whoever", "Who", "Whom", "How", "However", "Of", "When", "Whenever", "Where", "Why"),
        *("Wherever", "As", "It", "Its", "They", "Their", "Them", "Nothing", "Nobody", "Somebody"),
        *("Such", "Another", "Here", "There", "One"),
    ]
)
_FIRST_PHRASES = (
    *("All that", "In which", "To which"),
    *("The same", "From there", "No one"),
)
# Lower-case names with which a sentence may begin.
_NAMES = frozenset(
    [
        *("gRPC", "llguidance", "transformers", "torch", "uvicorn", "httpx", "numpy", "pydantic"),
        *("tokenizers", "safetensors", "grpcio", "starlette", "uvloop", "structlog", "typer"),
        *("systemd", "pip", "vLLM", "mypy", "ngram", "int8", "int4", "bfloat16", "float16"),
        *("float32", "float8", "ggml", "curl"),
    ]
)
_CODE = re.compile(r"\S*[`_.()\d/=-]\S*")
_TEST_STARTS = re.compile(
    r"test_(?:an?|the|one_(?:that|who|which|of)|nobody|somebody|whoever|nothing|what|whatever|"
    r"who|whose|that|those|these|which|how|where|when|why|it|its|they|their|all_that|as|of|if|"
    r"here|there|everybody)_"
)
_EVENT = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_LEVELS = frozenset({"debug", "info", "warning", "error", "critical", "exception"})


@dataclass(frozen=True, order=True)
class Violation:
    """A line that breaks a rule. `path` is relative to the repository's root."""

    path: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


@dataclass(frozen=True)
class Text:
    """A piece of prose and the line it starts on."""

    line: int
    prose: str


def violations() -> list[Violation]:
    """Return the violations of the whole repository, sorted."""
    return sorted({*_source_violations(), *_metrics_violations(), *_options_violations()})


def _is_in(path: str, chosen: Iterable[str]) -> bool:
    """Return True if the file is one of the chosen files or in one of the chosen folders."""
    return any(PurePosixPath(path).is_relative_to(entry) for entry in chosen)


def _source_violations() -> Iterator[Violation]:
    for path in sorted(_files()):
        name = path.relative_to(ROOT).as_posix()
        check = _CHECKS.get(path.suffix, _check_prose_only)
        for line, message in check(name, path.read_text()):
            yield Violation(name, line, message)


def _files() -> Iterator[Path]:
    for package in PACKAGES:
        for suffix in ("py", "cpp", "h"):
            yield from (ROOT / package).rglob(f"*.{suffix}")
    yield from (path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__))
    yield from (ROOT / "protos" / "chatrpc").rglob("*.proto")
    for page in DOCS:
        yield from [ROOT / page] if page.endswith(".md") else (ROOT / page).glob("*.md")


Problem = tuple[int, str]


def _check_prose_only(name: str, source: str) -> Iterator[Problem]:
    """Check the comments of C++ and protobuf."""
    texts = [
        Text(number, line.partition("//")[2])
        for number, line in enumerate(source.splitlines(), 1)
        if "//" in line
    ]
    yield from _check_glossary(name, _joined(texts))


def _check_markdown(name: str, source: str) -> Iterator[Problem]:
    is_code = False
    texts = []
    for number, line in enumerate(source.splitlines(), 1):
        if line.lstrip().startswith("```"):
            is_code = not is_code
        elif not is_code:
            texts.append(Text(number, line))
    yield from _check_glossary(name, _joined(texts))


def check_python(name: str, source: str) -> Iterator[Problem]:
    """Yield line and message of each violation in a module.

    Args:
        name: Its path, relative to the repository's root.
        source: Its content.
    """
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    is_test = name.startswith("tests/")
    docstrings = list(_docstrings(nodes))
    for line, docstring in docstrings:
        yield from _check_docstring(line, docstring)
    yield from _check_missing_docstrings(tree, is_test=is_test)
    yield from _check_names(nodes, is_test=is_test)
    yield from _check_logs(name, nodes)
    texts = [
        Text(line + offset, text)
        for line, docstring in docstrings
        for offset, text in enumerate(docstring.splitlines())
    ]
    comments = [
        Text(token.start[0], token.string.lstrip("# "))
        for token in tokenize.generate_tokens(iter(source.splitlines(keepends=True)).__next__)
        if token.type == tokenize.COMMENT
    ]
    strings = [] if is_test else list(_strings(nodes, {line for line, _ in docstrings}))
    for group in (texts, comments, strings):
        yield from _check_glossary(name, _joined(group))


_CHECKS: dict[str, Callable[[str, str], Iterator[Problem]]] = {
    ".py": check_python,
    ".md": _check_markdown,
}


def _joined(texts: list[Text]) -> Iterator[Text]:
    """Yield each line with the first words of the next: a phrase may be on two lines."""
    for text, following in zip_longest(texts, texts[1:], fillvalue=Text(0, "")):
        words = following.prose.split()[:2] if following.line == text.line + 1 else []
        yield Text(text.line, text.prose.rstrip() + "\n" + " ".join(words))


def _check_glossary(name: str, texts: Iterable[Text]) -> Iterator[Problem]:
    for text in texts:
        own = len(re.sub(r"`[^`]*`", "``", text.prose.partition("\n")[0]))
        prose = re.sub(r"`[^`]*`", "``", text.prose).replace("\n", " ")
        if _ANY_PHRASE.search(prose) is None:
            continue
        for pattern, instead in _PATTERNS:
            for found in pattern.finditer(prose):
                phrase = " ".join(found[0].lower().split())
                if found.start() < own and (name, phrase) not in ALLOWED:
                    yield text.line, f'"{phrase}": write {instead}'


def _docstrings(nodes: list[ast.AST]) -> Iterator[tuple[int, str]]:
    for node in nodes:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring is not None:
                yield node.body[0].lineno, docstring


def _check_docstring(line: int, docstring: str) -> Iterator[Problem]:
    first = " ".join(docstring.partition("\n\n")[0].split())
    if not first.rstrip("`*\"')").endswith((".", ":", "?", "!")):
        yield line, f'docstring: "{first[-30:]}" does not end with a full stop'
    yield from ((line, f"docstring: {problem}") for problem in _start_problems(first))


def _start_problems(sentence: str) -> Iterator[str]:
    """Yield the problems of the first words of a sentence that is read by itself."""
    word = sentence.partition(" ")[0]
    bare = word.strip(",:;.\"'")
    if bare.removesuffix("'s") in _FIRST_WORDS or sentence.startswith(
        tuple(f"{phrase} " for phrase in _FIRST_PHRASES)
    ):
        yield f'begins with "{" ".join(sentence.split()[:3])}": name the subject, or use a verb'
    is_code = _CODE.fullmatch(word) is not None or bare.removesuffix("'s") in _NAMES
    if not (word[:1].isupper() or is_code or word.startswith(("<", "[", "$", '"'))):
        yield f'begins with "{word}": use a capital letter'


def _check_missing_docstrings(tree: ast.Module, *, is_test: bool) -> Iterator[Problem]:
    if is_test:
        return
    if tree.body and ast.get_docstring(tree) is None:
        yield 1, "the module has no docstring"
    for node in tree.body:
        if (
            isinstance(node, ast.ClassDef)
            and not node.name.startswith("_")
            and ast.get_docstring(node) is None
        ):
            yield node.lineno, f"class {node.name} has no docstring"


def _check_names(nodes: list[ast.AST], *, is_test: bool) -> Iterator[Problem]:
    for node in nodes:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        name = node.name
        words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name.replace("_", " ")).lower()
        for pattern, instead in _PATTERNS if _ANY_PHRASE.search(words) else ():
            if (found := pattern.search(words)) is not None:
                yield node.lineno, f'{name}: "{found[0]}": write {instead}'
        if is_test and name.startswith("test_"):
            if len(name.split("_")) < 4:
                yield node.lineno, f"{name}: name subject, condition and result"
            if _TEST_STARTS.match(name) is not None:
                yield node.lineno, f"{name}: begin with the subject, without an article"


def _check_logs(name: str, nodes: list[ast.AST]) -> Iterator[Problem]:
    module = name.removesuffix(".py").replace("/", ".")
    for node in nodes:
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        owner, method = node.func.value, node.func.attr
        if not isinstance(owner, ast.Name) or not node.args:
            if isinstance(owner, ast.Name) and owner.id == "structlog" and method == "get_logger":
                yield node.lineno, "name the logger by __name__"
            continue
        first = node.args[0]
        constant = first.value if isinstance(first, ast.Constant) else None
        if owner.id in {"log", "_log"} and method in _LEVELS:
            if not isinstance(constant, str) or _EVENT.fullmatch(constant) is None:
                yield node.lineno, "name the log event by a snake_case constant"
        elif owner.id == "structlog" and method == "get_logger":
            is_dunder = isinstance(first, ast.Name) and first.id == "__name__"
            if not is_dunder and constant != module:
                yield node.lineno, "name the logger by __name__"


def _strings(nodes: list[ast.AST], docstring_lines: set[int]) -> Iterator[Text]:
    """Yield the string constants of at least three words: messages, and texts of options."""
    for node in nodes:
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and node.lineno not in docstring_lines
            and len(node.value.split()) >= 3
        ):
            yield Text(node.lineno, " ".join(node.value.split()))


def _metrics_violations() -> Iterator[Violation]:
    service, gateway, files = ServiceMetrics(), GatewayMetrics(), CollectorRegistry()
    service.watch_engine(EngineStats, 256)
    gateway.watch_upstreams(lambda: [("m", True)])
    gateway.watch_hosted_models(lambda: [HostedModelStatus("m", "loaded", 1, 0)])
    files.register(ReloadMetrics())
    for registry, path in (
        (service.registry, "service/metrics.py"),
        (gateway.registry, "gateway_http/metrics.py"),
        (files, "chatrpc_process/reload_metrics.py"),
    ):
        for family in registry.collect():
            if not family.name.startswith(("process_", "vllm:")):
                line = _line_with(path, family.name)
                for problem in _sentence_problems(family.documentation):
                    yield Violation(path, line, f"metric {family.name}: {problem}")


def _options_violations() -> Iterator[Violation]:
    for settings in (ServiceSettings, GatewaySettings):
        for name, field in settings.model_fields.items():
            owner = next(
                c for c in reversed(settings.__mro__) if name in vars(c).get("__annotations__", ())
            )
            path = owner.__module__.replace(".", "/") + ".py"
            line = _line_with(path, f"    {name}:")
            for problem in _sentence_problems(field.description or ""):
                yield Violation(path, line, f"option {name}: {problem}")
    for app, path in (
        (chatrpc_cli.__main__.app, "chatrpc_cli/__main__.py"),
        (bench.__main__.app, "bench/__main__.py"),
    ):
        for command, name, text in _parameters(typer.main.get_command(app)):
            line = _line_with(path, text.split("[")[0].strip()[:40])
            for problem in _sentence_problems(text):
                yield Violation(path, line, f"{command}, option {name}: {problem}")


def _parameters(command: object, path: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield command, name and help of each parameter of a typer application."""
    for parameter in getattr(command, "params", ()):
        if parameter.name not in {"help", "install_completion", "show_completion"}:
            yield path, parameter.name, getattr(parameter, "help", None) or ""
    for name, child in getattr(command, "commands", {}).items():
        yield from _parameters(child, f"{path} {name}".strip())


def _sentence_problems(text: str) -> Iterator[str]:
    """Yield the problems of a text that is shown without context."""
    if len(text.split()) < 3:
        yield f'"{text}" has fewer than three words'
    if not text.rstrip("`)").endswith("."):
        yield f'"{text[-30:]}" does not end with a full stop'
    yield from _start_problems(text)


def _line_with(path: str, text: str) -> int:
    lines = (ROOT / path).read_text().splitlines()
    return next((number for number, line in enumerate(lines, 1) if text in line), 1)


def main(paths: list[str]) -> int:
    """Print the violations in these files and folders, or in all files if there are no paths."""
    chosen = [Path(path).resolve().relative_to(ROOT).as_posix() for path in paths]
    found = [v for v in violations() if not chosen or _is_in(v.path, chosen)]
    for violation in found:
        print(violation)  # noqa: T201  # the output of a command
    print(f"{len(found)} violations", file=sys.stderr)  # noqa: T201  # as above
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
