"""The floors of ARCHITECTURE.md: who may import whom."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Each package or module of ours, by the longest prefix that matches, may import those named here,
# its own package and libraries. Nothing else.
ALLOWED: dict[str, set[str]] = {
    "chatrpc_process": set(),
    "service.types": set(),
    "service.errors": set(),
    "service.cache": set(),
    "service.openmp": set(),
    "service.fingerprint": set(),
    "service.vllm_names": {"service.types"},
    "service.metrics_port": set(),
    "service.metrics": {"service.types", "service.vllm_names"},
    "service.config": {"chatrpc_process", "service.cache"},
    "service.gguf": {"service.errors"},
    "service.converted_directory": set(),
    "service.checkpoint": {
        "service.types",
        "service.errors",
        "service.converted_directory",
        "service.gguf",
    },
    "service.text": {"service.types", "service.errors"},
    "service.engine": {
        "chatrpc_process.fair_queue",
        "chatrpc_process.shared_capacity",
        "service.types",
        "service.errors",
        "service.cache",
    },
    "service.rpc": {
        "chatrpc",
        "chatrpc_process",
        "service.types",
        "service.errors",
        "service.metrics",
        "service.text",
    },
    "service.model": {
        "service.types",
        "service.config",
        "service.checkpoint",
        "service.fingerprint",
        "service.text",
        "service.engine",
    },
    "service.__main__": {"chatrpc_process", "service"},
    "service.prepare": {
        "chatrpc_process",
        "service.config",
        "service.errors",
        "service.model",
        "service.openmp",
    },
    "gateway_http": {"chatrpc", "chatrpc_process"},
    "chatrpc_cli": {
        "chatrpc",
        "chatrpc_process.errors",
        "chatrpc_process.keys",
        "chatrpc_process.loopback",
        "chatrpc_process.secret",
        "chatrpc_process.small_file",
    },
    # It measures all of it, and nothing of it knows that.
    "bench": {"chatrpc", "chatrpc_cli", "service"},
}
OURS = {"chatrpc_process", "service", "gateway_http", "chatrpc_cli", "chatrpc", "bench", "tests"}

# What a module imports inside a function, since it takes long and a start does without it, or does
# other things first.
DEFERRED = {
    ("service.model", "service.engine.load"),
    ("service.model", "service.engine.native.build"),
    ("service.engine.load", "service.engine.transformers_model"),
    ("service.engine.model_config", "service.engine.transformers_config"),
    ("service.checkpoint", "service.gguf.convert"),
    ("service.checkpoint", "huggingface_hub"),
    ("chatrpc_process.tracing", "chatrpc_process.otel"),
}

# These never import torch, whatever they import: policy is plain Python, and a start answers probes
# and says what is wrong with its model before it spends seconds on torch.
WITHOUT_TORCH = (
    "service.__main__",
    "service.checkpoint",
    "service.text.hf_tokenizer",
    "service.engine.model_config",
    "service.engine.scheduler",
    "service.engine.block_pool",
    "service.engine.admission",
    "service.engine.core",
    "service.engine.async_engine",
    "service.rpc.server",
    "service.text.answer",
    "service.config",
    "gateway_http.app",
    "chatrpc_cli.__main__",
    "bench.__main__",
)


def sources() -> Iterator[tuple[str, Path]]:
    for package in ("chatrpc_process", "service", "gateway_http", "chatrpc_cli", "bench"):
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts).removesuffix(".__init__"), path


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Every module that a file imports, with the line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def rule(module: str) -> str:
    return max((name for name in ALLOWED if is_within(module, name)), key=len)


@pytest.mark.parametrize(("module", "path"), sorted(sources()))
def test_a_module_imports_only_from_its_own_floor_or_below(module: str, path: Path) -> None:
    if module == "service":
        return
    allowed = ALLOWED[rule(module)] | {rule(module)}
    for line, name in imported(path):
        if name.split(".")[0] in OURS:
            assert any(is_within(name, a) for a in allowed), f"{path}:{line}: {module} -> {name}"


@pytest.mark.parametrize(("module", "path"), sorted(sources()))
def test_no_module_hides_an_import_from_the_reader(module: str, path: Path) -> None:
    text = path.read_text()
    assert "TYPE_CHECKING" not in text
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for hidden in ast.walk(node):
                if isinstance(hidden, ast.Import | ast.ImportFrom):
                    name = getattr(hidden, "module", None)
                    assert (module, name) in DEFERRED, f"{path}:{hidden.lineno}: {name} is hidden"


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_a_fresh_interpreter_that_imports_it_has_no_torch(module: str) -> None:
    code = (
        f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert done.returncode == 0


def test_the_gateway_and_the_service_do_not_know_each_other() -> None:
    for module, path in sources():
        for line, name in imported(path):
            other = {"gateway_http": "service", "service": "gateway_http"}.get(module.split(".")[0])
            assert name.split(".")[0] != other, f"{path}:{line}"
