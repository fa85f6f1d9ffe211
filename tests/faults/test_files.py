"""Key files and certificates that change or are damaged during calls."""

import asyncio
import base64
import os
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from structlog.testing import capture_logs

from chatrpc_process.files.small_file import MAX_BYTES
from chatrpc_process.tls import TlsFiles
from service.domain.engine import FinishReason, TokenOutput
from service.domain.model import LocalModel
from service.domain.sampling import SamplingParams
from service.generation.local_backend import locally_served
from service.rpc.calls.rpcs import SERVICE_NAMES
from service.rpc.server import Server
from service.rpc.serving.lifecycle import Lifecycle
from tests.fakes.engine import FakeEngine
from tests.fakes.tokenizer import EOS, ByteTokenizer
from tests.fakes.wait import until
from tests.support.api_keys import OTHER, SECRET, key
from tests.support.grpc_server import CARD
from tests.support.guarded_server import Guarded, guarded
from tests.support.programs import Client
from tests.support.rpc_errors import rpc_error
from tests.support.tls_client import check, read, trusting
from tests.support.tls_files import issue, write


@asynccontextmanager
async def load(call: Callable[[], Any], num_tasks: int = 4) -> AsyncIterator[None]:
    """Make calls in a loop while the body runs. None may fail."""
    ended = False

    async def go_on() -> int:
        num_calls = 0
        while not ended or not num_calls:
            await call()
            num_calls += 1
        return num_calls

    tasks = [asyncio.create_task(go_on()) for _ in range(num_tasks)]
    try:
        yield
    finally:
        ended = True
        await asyncio.gather(*tasks)


@asynccontextmanager
async def watched(service: Guarded) -> AsyncIterator[None]:
    """Check the key file for changes every millisecond; a service does it every two seconds."""

    async def look() -> None:
        while True:
            service.keys.refresh()
            await asyncio.sleep(0.001)

    looking = asyncio.create_task(look())
    yield
    assert not looking.done(), looking.exception()
    looking.cancel()


def _gone(path: Path) -> None:
    path.unlink()


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def _dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nothing"))


def _of(content: bytes) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.write_bytes(content)

    return damage


def _remove(path: Path) -> None:
    """Remove a file, a link or an empty directory."""
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "gone": _gone,
    "directory": _directory,
    "pipe": _pipe,
    "loop": _loop,
    "dangling": _dangling,
    "emptied": _of(b""),
    "cut": _of(key()[: len(key()) // 2].encode()),
    "noise": _of(bytes(range(256)) * 8),
    "nested": _of(b"key = " + b"[" * 100_000),
    "huge": _of(b"# " + b"x" * (8 * MAX_BYTES)),
    "secret": _of(f'[[key]]\nname = "one"\nsha256 = "{SECRET}"\n'.encode()),
    "secret as option": _of(f'[[key]]\nname = "one"\n"{SECRET}" = 1\n'.encode()),
    "only secret": _of(SECRET.encode()),
    "twice": _of((key() + key()).encode()),
}


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    path.write_text(key())
    return path


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
async def test_damaged_key_file_leaves_the_old_keys(
    keys: Path, damage: Callable[[Path], None]
) -> None:
    with capture_logs() as lines:
        async with guarded(keys) as service, watched(service), load(service.create):
            damage(keys)
            await until(lambda: any(line["event"] == "file_reload_failed" for line in lines))
            error = await rpc_error(service.create((("x-api-key", OTHER),)))
            assert error.code == grpc.StatusCode.UNAUTHENTICATED

            whole = keys.with_name("whole")
            whole.write_text(key() + key(OTHER, name="two"))
            _remove(keys)
            whole.rename(keys)
            await until(lambda: any(line["event"] == "file_reloaded" for line in lines))
            await service.create((("x-api-key", OTHER),))
    failures = [line for line in lines if line["event"] == "file_reload_failed"]
    assert 1 <= len(failures) <= 2  # a file that is removed and created again changes twice
    assert str(keys) in failures[0]["reason"]
    assert SECRET not in repr(lines)


async def test_replaced_key_files_are_reloaded(tmp_path: Path) -> None:
    """Kubernetes replaces files by changing a link to their directory."""
    first = tmp_path / "..1"
    first.mkdir()
    (first / "keys.toml").write_text(key())
    (tmp_path / "..data").symlink_to("..1")
    keys = tmp_path / "keys.toml"
    keys.symlink_to("..data/keys.toml")
    with capture_logs() as lines:
        async with guarded(keys) as service, watched(service), load(service.create):
            for number in range(2, 6):
                directory = tmp_path / f"..{number}"
                directory.mkdir()
                other = f"sk-chatrpc-{number}"
                (directory / "keys.toml").write_text(key() + key(other, name="two"))
                (tmp_path / "..new").symlink_to(directory.name)
                (tmp_path / "..new").rename(tmp_path / "..data")
                await until(lambda n=number: _num_reloads(lines) == n - 1)  # type: ignore[misc]
                await service.create((("x-api-key", other),))
    assert not any(line["event"] == "file_reload_failed" for line in lines)


def _num_reloads(lines: Any) -> int:
    return sum(line["event"] == "file_reloaded" for line in lines)


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def certificates(ca: trustme.CA, tmp_path: Path) -> TlsFiles:
    return issue(ca, tmp_path)


@asynccontextmanager
async def secured(files: TlsFiles) -> AsyncIterator[tuple[FakeEngine, int]]:
    """Run a server with TLS and a scripted engine. Yield the engine and the port."""
    engine = FakeEngine()
    lifecycle = Lifecycle(SERVICE_NAMES)
    server = Server(lifecycle, request_timeout_s=600, tls=files)
    port = await server.start("127.0.0.1", 0)
    await lifecycle.serve(
        locally_served(
            LocalModel(CARD, ByteTokenizer(), engine, SamplingParams(), frozenset({EOS}), 257)
        )
    )
    yield engine, port
    await server.stop()


def written(files: TlsFiles) -> bytes:
    """Return the first certificate in the file."""
    first = files.certificate.read_text().partition("-----END")[0]
    return base64.b64decode(first.partition("CERTIFICATE-----")[2])


async def shown(ca: trustme.CA, port: int) -> bytes:
    """Return the certificate that a new connection gets."""
    context = ssl.create_default_context(cadata=ca.cert_pem.bytes().decode())
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname="localhost"
    )
    certificate: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return certificate


async def test_certificates_replaced_under_load_fail_no_call(
    ca: trustme.CA, certificates: TlsFiles, tmp_path: Path
) -> None:
    async with secured(certificates) as (engine, port):
        go_on = asyncio.Event()
        engine.script = [TokenOutput((97,)), go_on, TokenOutput((98,), FinishReason.LENGTH)]

        async def new_connection() -> None:
            await check(port, trusting(ca))

        async with Client(f"localhost:{port}", credentials=trusting(ca)) as client:
            stream = client.stream()
            await anext(aiter(stream))
            async with load(new_connection):
                for _ in range(6):
                    issue(ca, tmp_path)  # the files change one after the other
                    assert await shown(ca, port) == written(certificates)
            go_on.set()
            assert [r async for r in stream][-1].chunk.usage.completion_tokens == 2


@pytest.mark.parametrize("damage", ["gone", "directory", "pipe", "emptied", "cut", "huge", "other"])
@pytest.mark.parametrize("which", ["certificate", "key"])
async def test_damaged_certificate_or_key_leaves_the_old_pair(
    ca: trustme.CA, certificates: TlsFiles, which: str, damage: str
) -> None:
    path: Path = getattr(certificates, which)
    content = read(path)
    damages = DAMAGES | {
        "cut": _of(content[: len(content) // 2]),
        "other": _of(trustme.CA().issue_cert("x").private_key_pem.bytes()),
    }
    async with secured(certificates) as (_, port):
        await check(port, trusting(ca))
        with capture_logs() as lines:
            damages[damage](path)
            os.utime(path.parent)
            for _ in range(3):
                await check(port, trusting(ca))
        assert [line["event"] for line in lines] == ["file_reload_failed"]
        assert "PRIVATE" not in repr(lines)
        _remove(path)
        write(path, content)
        await check(port, trusting(ca))
