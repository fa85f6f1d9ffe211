"""The program that `helm test` runs, against a real gateway."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import trustme

from tests.deploy.chart import CHART
from tests.fakes.chat_service import FakeService
from tests.support.api_keys import SECRET, key, write
from tests.support.gateway import checking_service, serving
from tests.support.tls_files import issue


async def smoke(*arguments: str) -> tuple[int | None, str]:
    """Run the program on an interpreter without our packages. Return its exit code and output."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", CHART / "files" / "smoke.py", *arguments,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await process.communicate()
    return process.returncode, output.decode().strip()


async def test_smoke_test_of_a_serving_gateway_passes() -> None:
    async with checking_service() as target, serving(upstream=target) as url:
        assert await smoke(url, "fake") == (0, "ok")


async def test_smoke_test_of_a_missing_model_fails() -> None:
    async with checking_service() as target, serving(upstream=target) as url:
        assert await smoke(url, "fake", "other") == (1, "/v1/models lacks other")


async def test_smoke_test_of_a_gateway_that_is_not_ready_fails() -> None:
    async with FakeService() as service, serving(upstream=service.target) as url:
        await service.set_ready(False)
        assert await smoke(url, "fake") == (1, "/readyz returned 503")


async def test_smoke_test_without_a_gateway_fails() -> None:
    async with checking_service() as target, serving(upstream=target) as url:
        pass
    code, words = await smoke(url, "fake")
    assert (code, words.partition(":")[0]) == (1, "http")
    assert "refused" in words


async def test_smoke_test_with_a_key_completes_and_without_it_accepts_401(tmp_path: Path) -> None:
    keys = write(tmp_path / "keys.toml", key())
    secret = write(tmp_path / "secret", SECRET + "\n")
    wrong = write(tmp_path / "wrong", "sk-chatrpc-wrong")
    async with checking_service() as target, serving(upstream=target, api_keys=keys) as url:
        assert await smoke(url, "fake") == (0, "ok")
        assert await smoke(url, f"--key-file={secret}", "fake") == (0, "ok")
        assert await smoke(url, f"--key-file={wrong}", "fake") == (1, "/v1/models returned 401")


async def test_smoke_test_sends_its_client_certificate(tmp_path: Path) -> None:
    authority = trustme.CA()
    gateway = issue(authority, tmp_path)
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")
    (tmp_path / "own").mkdir()
    own = issue(authority, tmp_path / "own")
    options: dict[str, Any] = {
        "tls_certificate": gateway.certificate,
        "tls_key": gateway.key,
        "tls_client_ca": tmp_path / "ca.crt",
    }
    shown = (f"--certificate={own.certificate}", f"--certificate-key={own.key}")
    async with checking_service() as target, serving(upstream=target, **options) as url:
        assert await smoke(url, *shown, "fake") == (0, "ok")
        code, words = await smoke(url, "fake")
        assert code == 1
        assert words.startswith(f"{url} cannot be reached")
