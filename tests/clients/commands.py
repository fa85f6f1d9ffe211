"""Commands of other projects, as processes that a test waits for."""

import asyncio
import sys
from collections.abc import Container, Mapping
from pathlib import Path

from tests.fakes.wait import failsafe

NODE = Path(sys.executable).parent / "node"
SCRIPTS = Path(__file__).parent / "node"
NODE_MODULES = SCRIPTS / "node_modules"


async def run(
    *command: str | Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    codes: Container[int] = (0,),
) -> str:
    """Run a command without input, and return its output. It has no environment but `env`.

    Raises:
        AssertionError: Its exit code is not in `codes`. The message contains its output.
    """
    async with failsafe():
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=cwd,
            env={"PATH": "/usr/bin:/bin", **(env or {})},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            out, err = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
    assert process.returncode in codes, f"{out.decode()}\n{err.decode()}"
    return out.decode()
