"""The floors of ARCHITECTURE.md: which module may import which."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support.sources import ROOT, imports, parse, sources

# For each folder or module, the set of our folders and modules that it may import. It may also
# import its own modules and libraries, and nothing else. The rule of the longest matching prefix
# applies, so a folder's rule also applies to its subfolders without a rule of their own.
ALLOWED: dict[str, set[str]] = {
    "chatrpc_process.errors": set(),
    "chatrpc_process.fairness": set(),
    "chatrpc_process.first_process": set(),
    "chatrpc_process.interpreter": set(),
    "chatrpc_process.leash": set(),
    "chatrpc_process.logs": set(),
    "chatrpc_process.metrics": set(),
    "chatrpc_process.threads": set(),
    "chatrpc_process.watchdog": set(),
    "chatrpc_process.tls": {"chatrpc_process.errors", "chatrpc_process.files"},
    "chatrpc_process.files": {"chatrpc_process.errors"},
    "chatrpc_process.reload_metrics": {"chatrpc_process.files", "chatrpc_process.tls"},
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
    "service.json_file": {"service.errors"},
    "service.openmp": set(),
    "service.fingerprint": set(),
    "service.metrics_port": set(),
    "service.converted_directory": set(),
    "service.domain": {"service.cache"},
    "service.engines": {"chatrpc_process.errors", "service.domain"},
    "service.vllm_names": {"service.domain"},
    "service.metrics": {"chatrpc_process.metrics", "service.domain", "service.vllm_names"},
    "service.upstream_url": set(),
    "service.config": {
        "chatrpc_process",
        "service.domain",
        "service.engines",
        "service.upstream_url",
    },
    "service.upstream": {
        "chatrpc_process",
        "service.config",
        "service.deadline",
        "service.domain",
        "service.errors",
        "service.streams.admission",
        "service.upstream_url",
    },
    "service.gguf": {"service.errors"},
    "service.checkpoint": {
        "service.domain",
        "service.errors",
        "service.json_file",
        "service.converted_directory",
        "service.gguf",
    },
    "service.deadline": {"service.errors"},
    "service.text": {"service.domain", "service.errors", "service.json_file"},
    "service.generation": {
        "service.deadline",
        "service.domain",
        "service.errors",
        "service.text",
    },
    "service.streams": {"chatrpc_process.fairness", "service.domain", "service.errors"},
    "service.engine": {
        "chatrpc_process.fairness",
        "chatrpc_process.logs",
        "service.domain",
        "service.errors",
        "service.cache",
        "service.fingerprint",
        "service.gguf.index",
        "service.json_file",
        "service.streams",
    },
    "service.vllm_engine": {
        "chatrpc_process.errors",
        "chatrpc_process.fairness",
        "chatrpc_process.logs",
        "chatrpc_process.threads",
        "service.domain",
        "service.errors",
        "service.streams",
    },
    "service.pooling": {
        "chatrpc_process.fairness",
        "chatrpc_process.threads",
        "service.checkpoint",
        "service.config",
        "service.domain",
        "service.engine.host_resources",
        "service.errors",
        "service.fingerprint",
        "service.json_file",
        "service.streams",
        "service.text.hf_tokenizer",
    },
    "service.engine.native": {
        "service.engine.gguf_blocks",
        "service.engine.grouped_weight",
        "service.engine.weight",
    },
    "service.rpc": {
        "chatrpc",
        "chatrpc_process.fairness",
        "chatrpc_process.tls",
        "chatrpc_process.tracing",
        "service.deadline",
        "service.domain",
        "service.errors",
        "service.metrics",
        "service.text",
    },
    "service.rpc.decode": {"chatrpc", "service.domain", "service.errors"},
    "service.rpc.encode": {"chatrpc", "service.domain"},
    "service.rpc.calls": {
        "chatrpc",
        "chatrpc_process",
        "service.deadline",
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
        "chatrpc_process.threads",
        "service.domain",
        "service.config",
        "service.checkpoint",
        "service.engines",
        "service.fingerprint",
        "service.generation",
        "service.text",
    },
    "service.task_runtime": {
        "chatrpc_process.threads",
        "service.checkpoint",
        "service.config",
        "service.domain",
        "service.model",
        "service.pooling",
    },
    "service.__main__": {"chatrpc_process", "service"},
    "service.runtimes": {
        "service.config",
        "service.domain",
        "service.engines",
    },
    "service.vllm_protocol": {
        "chatrpc",
        "service.domain",
        "service.errors",
        "service.json_file",
        "service.rpc",
    },
    "service.extensions": {"chatrpc_process.errors", "service.config", "service.rpc"},
    "service.prepare": {
        "chatrpc_process",
        "service.config",
        "service.engines",
        "service.errors",
        "service.openmp",
        "service.runtimes",
    },
    # The gateway, from the bottom to the top.
    "gateway_http.protocol": {"chatrpc.v1.limits"},
    "gateway_http.metrics": {"chatrpc_process.metrics"},
    "gateway_http.config": {"chatrpc_process"},
    "gateway_http.response_store": {"chatrpc_process.errors"},
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
        "chatrpc_process.access",
        "chatrpc_process.files",
        "chatrpc_process.logs",
        "gateway_http.auth",
        "gateway_http.config",
        "gateway_http.convert",
        "gateway_http.errors",
        "gateway_http.http",
        "gateway_http.metrics",
        "gateway_http.openapi",
        "gateway_http.protocol",
        "gateway_http.response_store",
        "gateway_http.upstream",
    },
    "gateway_http.endpoints": {
        "gateway_http.http.api_style",
        "gateway_http.http.endpoint",
        "gateway_http.protocol",
        "gateway_http.routes",
    },
    "gateway_http.app": {"chatrpc_process", "gateway_http"},
    "gateway_http.check": {
        "chatrpc_process",
        "gateway_http.config",
        "gateway_http.response_store",
        "gateway_http.upstream",
    },
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
    # The benchmarks measure all packages. No package imports them.
    "bench": {"chatrpc", "chatrpc_cli", "chatrpc_process.leash", "service"},
}
# Packages whose __init__ is empty.
EMPTY = {"service", "gateway_http", "chatrpc_process"}
OURS = {"chatrpc_process", "service", "gateway_http", "chatrpc_cli", "chatrpc", "bench", "tests"}

# Imports inside functions. They take long, and a start does not need them or does other things
# first.
DEFERRED = {
    ("service.engine.local", "service.engine.load"),
    ("service.engine.local", "service.engine.native.build"),
    ("service.engine.load", "service.engine.transformers_model"),
    ("service.engine.native.wheel_hook", "service.engine.native"),
    ("service.engine.model_config", "service.engine.transformers_config"),
    ("service.engine.gguf_blocks", "gguf"),
    ("service.vllm_engine.engine", "service.vllm_engine.launch"),
    ("service.pooling.runtime", "service.pooling.runners"),
    ("service.vllm_engine.busy_waits", "vllm.distributed.device_communicators.shm_broadcast"),
    ("service.vllm_engine.busy_waits", "vllm.platforms"),
    ("service.checkpoint", "service.gguf.convert"),
    ("service.checkpoint", "huggingface_hub"),
    ("bench.__main__", "bench.context"),
    ("bench.__main__", "bench.embeddings"),
    ("chatrpc_process.tracing.exporter", "chatrpc_process.tracing.otel"),
}

# These modules do not import torch, directly or indirectly. Policies are plain Python. A starting
# service responds to probes and reports a wrong model before it imports torch, which takes seconds.
WITHOUT_TORCH = (
    "service.__main__",
    "service.checkpoint",
    "service.text.hf_tokenizer",
    "service.engine.model_config",
    "service.engine.limits",
    "service.engine.scheduler",
    "service.engine.block_pool",
    "service.streams.admission",
    "service.engine.core",
    "service.engine.async_engine",
    "service.vllm_engine.engine",
    "service.rpc.server",
    "service.text.output_text",
    "service.config",
    "service.task_runtime",
    "gateway_http.app",
    "chatrpc_cli.__main__",
    "bench.__main__",
)


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def rule(module: str) -> str:
    rules = [name for name in ALLOWED if is_within(module, name)]
    assert rules, f"{module} has no rule in ALLOWED"
    return max(rules, key=len)


def test_module_imports_only_what_its_rule_allows() -> None:
    wrong = []
    for module, path in sources():
        if module not in EMPTY:
            allowed = ALLOWED[rule(module)] | {rule(module)}
            wrong += [
                f"{path.relative_to(ROOT)}:{line}: {module} imports {name}"
                for line, name in imports(path)
                if name.split(".")[0] in OURS and not any(is_within(name, a) for a in allowed)
            ]
    assert not wrong, "\n".join(wrong)


def test_module_imports_at_its_top_unless_deferred() -> None:
    wrong = []
    for module, path in sources():
        if "TYPE_CHECKING" in path.read_text():
            wrong.append(f"{path.relative_to(ROOT)}: {module} uses TYPE_CHECKING")
        wrong += [
            f"{path.relative_to(ROOT)}:{line}: {module} imports {name} inside a function"
            for line, name in _imports_in_functions(path)
            if (module, name) not in DEFERRED
        ]
    assert not wrong, "\n".join(wrong)


def _imports_in_functions(path: Path) -> Iterator[tuple[int, str | None]]:
    for function in ast.walk(parse(path)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    yield node.lineno, getattr(node, "module", None)


def test_modules_of_without_torch_do_not_import_torch() -> None:
    """A single interpreter imports them all and reports the first that loads torch."""
    code = (
        "import importlib, sys\n"
        "for module in sys.argv[1:]:\n"
        "    importlib.import_module(module)\n"
        "    if {'torch', 'transformers'} & sys.modules.keys(): sys.exit(module)\n"
    )
    command = [sys.executable, "-c", code, *WITHOUT_TORCH]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_gateway_and_service_do_not_import_each_other() -> None:
    other = {"gateway_http": "service", "service": "gateway_http"}
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {module} imports {name}"
        for module, path in sources(*other)
        for line, name in imports(path)
        if name.split(".")[0] == other[module.split(".")[0]]
    ]
    assert not wrong, "\n".join(wrong)


def test_tests_import_no_test_modules_or_helpers_of_other_folders() -> None:
    """Helpers are in tests/support, in tests/fakes, or beside the tests that use them."""
    wrong = []
    for module, path in sources("tests"):
        for line, name in imports(path):
            if is_within(name, "tests"):
                # `from tests.bench import runs`, or `from tests.bench.runs import results`
                is_module = (ROOT / name.replace(".", "/")).with_suffix(".py").is_file()
                helper = name if is_module else name.rpartition(".")[0]
                folder, _, last = helper.rpartition(".")
                is_shared = is_within(folder, "tests.support") or folder == "tests.fakes"
                is_test = last == "conftest" or last.startswith("test_")
                if is_test or not (is_shared or is_within(module, folder)):
                    wrong.append(f"{path.relative_to(ROOT)}:{line}: imports {name}")
    assert not wrong, "\n".join(wrong)
