"""The floors of ARCHITECTURE.md: who may import whom."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Each folder or module of ours, by the longest prefix that matches, may import those named here,
# its own modules and libraries. A folder's rule holds for those of its folders that have no rule of
# their own. Nothing else may be imported.
ALLOWED: dict[str, set[str]] = {
    "chatrpc_process.errors": set(),
    "chatrpc_process.fairness": set(),
    "chatrpc_process.first_process": set(),
    "chatrpc_process.interpreter": set(),
    "chatrpc_process.logs": set(),
    "chatrpc_process.watchdog": set(),
    # Certificates are files that are watched, and watched files have certificates' dates.
    "chatrpc_process.tls": {"chatrpc_process.errors", "chatrpc_process.files"},
    "chatrpc_process.files": {"chatrpc_process.errors", "chatrpc_process.tls"},
    "chatrpc_process.tracing": {"chatrpc_process.errors"},
    "chatrpc_process.access": {"chatrpc_process.errors", "chatrpc_process.files"},
    "chatrpc_process.settings": {
        "chatrpc_process.errors",
        "chatrpc_process.logs",
        "chatrpc_process.tls",
    },
    "chatrpc_process.check": {
        "chatrpc_process.access",
        "chatrpc_process.errors",
        "chatrpc_process.settings",
    },
    "service.errors": set(),
    "service.cache": set(),
    "service.openmp": set(),
    "service.fingerprint": set(),
    "service.metrics_port": set(),
    "service.converted_directory": set(),
    "service.domain": set(),
    "service.vllm_names": {"service.domain"},
    "service.metrics": {"service.domain", "service.vllm_names"},
    "service.config": {"chatrpc_process", "service.cache"},
    "service.gguf": {"service.errors"},
    "service.checkpoint": {
        "service.domain",
        "service.errors",
        "service.converted_directory",
        "service.gguf",
    },
    "service.text": {"service.domain", "service.errors"},
    "service.engine": {
        "chatrpc_process.fairness",
        "service.domain",
        "service.errors",
        "service.cache",
    },
    "service.engine.native": set(),
    "service.rpc": {
        "chatrpc",
        "chatrpc_process.fairness",
        "chatrpc_process.tls",
        "chatrpc_process.tracing",
        "service.domain",
        "service.errors",
        "service.metrics",
        "service.text",
    },
    "service.rpc.decode": {"chatrpc", "service.domain", "service.errors"},
    "service.rpc.encode": {
        "chatrpc",
        "service.domain",
        "service.errors",
        "service.rpc.calls.work_pools",
        "service.rpc.completion_generation",
        "service.rpc.decode",
        "service.text",
    },
    "service.rpc.calls": {
        "chatrpc",
        "chatrpc_process",
        "service.domain",
        "service.errors",
        "service.metrics",
    },
    "service.rpc.serving": {
        "chatrpc",
        "chatrpc_process.files",
        "chatrpc_process.tls",
        "service.domain",
        "service.errors",
        "service.rpc.calls",
    },
    "service.model": {
        "service.domain",
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
    # The gateway, from the bottom to the top.
    "gateway_http.protocol": {"chatrpc.v1.limits"},
    "gateway_http.metrics": set(),
    "gateway_http.config": {"chatrpc_process"},
    "gateway_http.errors": {"chatrpc", "gateway_http.protocol"},
    "gateway_http.convert": {"chatrpc", "gateway_http.protocol"},
    "gateway_http.auth": {"chatrpc", "chatrpc_process", "gateway_http.protocol"},
    "gateway_http.http": {
        "chatrpc_process",
        "gateway_http.errors",
        "gateway_http.metrics",
        "gateway_http.protocol",
    },
    "gateway_http.openapi": {
        "chatrpc.v1.comments",
        "chatrpc.v1.limits",
        "gateway_http.http.endpoint",
        "gateway_http.protocol",
    },
    "gateway_http.upstream": {
        "chatrpc",
        "chatrpc_process",
        "gateway_http.metrics",
        "gateway_http.protocol",
    },
    "gateway_http.routes": {
        "chatrpc",
        "chatrpc_process.files",
        "gateway_http.auth",
        "gateway_http.config",
        "gateway_http.convert",
        "gateway_http.errors",
        "gateway_http.http",
        "gateway_http.metrics",
        "gateway_http.openapi",
        "gateway_http.protocol",
        "gateway_http.upstream",
    },
    "gateway_http.endpoints": {
        "gateway_http.http.endpoint",
        "gateway_http.protocol",
        "gateway_http.routes",
    },
    "gateway_http.app": {"chatrpc_process", "gateway_http"},
    "gateway_http.check": {"chatrpc_process", "gateway_http.config", "gateway_http.upstream"},
    "gateway_http.server": {
        "chatrpc_process",
        "gateway_http.app",
        "gateway_http.config",
        "gateway_http.http",
    },
    "gateway_http.__main__": {
        "chatrpc_process",
        "gateway_http.app",
        "gateway_http.check",
        "gateway_http.config",
        "gateway_http.endpoints",
        "gateway_http.http.endpoint",
        "gateway_http.server",
    },
    "chatrpc_cli": {
        "chatrpc",
        "chatrpc_process.access",
        "chatrpc_process.errors",
        "chatrpc_process.files.small_file",
        "chatrpc_process.settings.loopback",
    },
    # It measures all of it, and nothing of it knows that.
    "bench": {"chatrpc", "chatrpc_cli", "service"},
}
# Packages that hold no code of their own.
EMPTY = {"service", "gateway_http", "chatrpc_process"}
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
    ("chatrpc_process.tracing.api", "chatrpc_process.tracing.otel"),
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
    "service.text.output_text",
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
    if module in EMPTY:
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
