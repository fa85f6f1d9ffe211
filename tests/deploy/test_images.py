"""The steps of the images run, and their processes start. `make test-deploy` runs these tests."""

import asyncio
import json
import os
import queue
import signal
import stat
import subprocess
import threading
import urllib.request
from pathlib import Path
from typing import Self

import pytest

from tests.deploy.dockerfile import parse
from tests.deploy.image import ROOT, Image
from tests.fakes import openai_upstream
from tests.support.make_serve import free_port
from tests.support.native_kernels import CPU_LEVELS

pytestmark = pytest.mark.images

# The CPU build in torch's index is not reachable everywhere; PyPI's build is used instead.
BUILD_ARGUMENTS = {
    "TORCH_INDEX_URL": os.environ.get(
        "TEST_TORCH_INDEX_URL", "https://download.pytorch.org/whl/cpu"
    )
}


def image(name: str, tmp_path_factory: pytest.TempPathFactory) -> Image:
    file = parse(ROOT / "deploy" / "docker" / f"{name}.Dockerfile")
    built = Image(tmp_path_factory.mktemp(name), file, BUILD_ARGUMENTS)
    built.build()
    return built


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Image:
    return image("gateway", tmp_path_factory)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Image:
    return image("service", tmp_path_factory)


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Image:
    return image("service-upstream", tmp_path_factory)


class Container:
    """A process of the image's entry point, whose log is read line by line."""

    def __init__(self, image: Image, *arguments: str, environment: dict[str, str]) -> None:
        self.image = image
        self.environment = {**image.environment, **environment}
        self.popen = subprocess.Popen(
            [*image.entrypoint, *arguments],
            cwd="/",
            env=self.environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log: list[str] = []
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.popen.kill()
        self.popen.wait()
        self._reading.join()
        if self.popen.stderr is not None:
            self.popen.stderr.close()

    def _read(self) -> None:
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            self._lines.put(line)
        self._lines.put("")

    def until(self, event: str) -> dict[str, object]:
        while line := self._lines.get():
            self.log.append(line)
            if line.startswith("{") and json.loads(line)["event"] == event:
                found: dict[str, object] = json.loads(line)
                return found
        raise AssertionError(f"no {event!r} in the log: {self.log}")

    def stop(self) -> int:
        self.popen.send_signal(signal.SIGTERM)
        while line := self._lines.get():
            self.log.append(line)
        return self.popen.wait()

    def is_healthy(self) -> bool:
        """Return True if the health check succeeds, on the port used instead of the image's."""
        (name,) = (name for name in self.environment if name.endswith("_ADMIN_PORT"))
        ports = self.image.environment[name], self.environment[name]
        command = [word.replace(*ports) for word in self.image.health_check]
        done = subprocess.run(
            command, env=self.environment, cwd="/", capture_output=True, check=False
        )
        return done.returncode == 0


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_mtime_ns, path.lstat().st_size) for path in root.rglob("*")}


def assert_readable_by_all_users(image: Image) -> None:
    root = image.path("/opt/chatrpc")
    for path in root.rglob("*"):
        mode = path.lstat().st_mode
        if not path.is_symlink():
            assert mode & stat.S_IROTH, path
            assert path.is_file() or mode & stat.S_IXOTH, path


def ports(prefix: str) -> dict[str, str]:
    return {f"{prefix}_{name}": str(free_port()) for name in ("PORT", "ADMIN_PORT")}


def packages(image: Image) -> set[str]:
    (site,) = image.path("/opt/chatrpc/lib").glob("python*/site-packages")
    return {path.name.partition("-")[0].lower() for path in site.glob("*.dist-info")}


def test_gateway_image_has_no_torch(gateway: Image) -> None:
    names = packages(gateway)
    assert "chatrpc" in names
    assert not names & {"torch", "transformers", "numpy", "pip"}
    assert_readable_by_all_users(gateway)


def test_service_image_has_its_kernels_and_converted_model(service: Image) -> None:
    assert_readable_by_all_users(service)
    (package,) = service.path("/opt/chatrpc/lib").glob("python*/site-packages/service")
    kernels = [path.name for path in (package / "engine" / "native" / "prebuilt").glob("*.so")]
    assert sorted(name.partition("-")[0] for name in kernels) == [
        "amx",
        "avx2",
        "avxvnni",
        "bf16",
        "vnni",
    ]
    assert list(service.path("/opt/chatrpc/cache/embedded").glob("*/model.safetensors"))
    assert not service.path("/opt/chatrpc/cache/native").exists()


def test_images_serve_write_no_files_and_stop_on_sigterm(
    service: Image, gateway: Image, tmp_path: Path
) -> None:
    before = snapshot(service.path("/")), snapshot(gateway.path("/"))
    nowhere = {"HOME": "/nowhere", "TMPDIR": "/nowhere"}
    back_ports, front_ports = ports("CHATRPC_SERVICE"), ports("CHATRPC_GATEWAY")
    registry = tmp_path / "registry.toml"
    registry.write_text(
        '[[model]]\nname = "small"\nupstream_model = "smollm2-135m-instruct"\n'
        f'target = "dns:///localhost:{back_ports["CHATRPC_SERVICE_PORT"]}"\n'
    )
    with (
        Container(service, "--insecure", environment=back_ports | nowhere) as back,
        Container(
            gateway, f"--registry={registry}", "--insecure", environment=front_ports | nowhere
        ) as front,
    ):
        assert not back.is_healthy()
        back.until("ready")
        assert back.is_healthy()
        front.until("listening")
        url = f"http://127.0.0.1:{front_ports['CHATRPC_GATEWAY_PORT']}"
        while not front.is_healthy():
            assert front.popen.poll() is None, front.log
        body = {
            "model": "small",
            "messages": [{"role": "user", "content": "What is the capital of France?"}],
        }
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(  # noqa: S310
            f"{url}/v1/chat/completions", json.dumps(body).encode(), headers
        )
        with urllib.request.urlopen(request) as response:  # noqa: S310
            assert "Paris" in json.load(response)["choices"][0]["message"]["content"]
        assert front.stop() == 0
        assert back.stop() == 0
    assert any("native_kernels_prebuilt" in line for line in back.log) or not CPU_LEVELS
    assert (snapshot(service.path("/")), snapshot(gateway.path("/"))) == before


async def test_image_without_a_model_serves_that_of_another_service(upstream: Image) -> None:
    assert not packages(upstream) & {"torch", "transformers", "llguidance", "tokenizers", "numpy"}
    assert_readable_by_all_users(upstream)
    before = snapshot(upstream.path("/"))
    environment = ports("CHATRPC_SERVICE") | {"HOME": "/nowhere", "TMPDIR": "/nowhere"}
    async with openai_upstream.running() as server:
        url = f"--upstream-url={server.url}"
        with Container(upstream, "--insecure", url, environment=environment) as service:
            await asyncio.to_thread(service.until, "ready")
            assert await asyncio.to_thread(service.is_healthy)
            assert await asyncio.to_thread(service.stop) == 0
    assert snapshot(upstream.path("/")) == before
