"""The peers' environments: they are made once and again for other pins, and fail with one line."""

import sys
from pathlib import Path

import pytest

from bench.peers.environment import Environment, InstallError, root

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def envs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCH_ENVS", str(tmp_path))
    return tmp_path


def test_bench_envs_sets_the_directory(envs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert root() == envs
    monkeypatch.delenv("BENCH_ENVS")
    assert root() == Path.cwd() / ".venv-bench"


def test_environment_is_installed_once_for_the_same_pins() -> None:
    made: list[Environment] = []
    Environment("peer", ["a==1"]).install(made.append)
    Environment("peer", ["a==1"]).install(made.append)
    assert len(made) == 1
    assert made[0].python.exists()
    Environment("peer", ["a==2"]).install(made.append)
    assert len(made) == 2


def test_failed_installation_is_not_kept() -> None:
    environment = Environment("peer", ["a==1"])
    code = "print('compiling'); print('no compiler'); raise SystemExit(3)"

    def recipe(environment: Environment) -> None:
        environment.run([sys.executable, "-c", code])

    for _ in range(2):
        with pytest.raises(InstallError, match=r"^no compiler \(all of it: .*install.log\)$"):
            environment.install(recipe)
    assert "compiling" in (environment.path / "install.log").read_text()


def test_process_of_a_peer_does_not_import_our_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/ours")
    environ = Environment("peer", []).environ()
    assert "PYTHONPATH" not in environ
    assert environ["PATH"].startswith(str(root() / "peer" / "bin"))
