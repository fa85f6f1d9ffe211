"""Processes of hosted models, which are services in this process.

launcher = FakeLauncher()
models = HostedModels(launcher, HostingOptions(), Metrics())
"""

import asyncio
from collections.abc import Sequence

from gateway_http.upstream.registry import HostedModel
from tests.fakes.chat_service import FakeService, Step, model

NO_MEMORY = 0


class FakeProcess:
    """A `ModelProcess` whose service is ready at once, unless `is_held`.

    Attributes:
        signals: The names of the methods that were called.
    """

    def __init__(self, name: str, service: FakeService, memory_bytes: int) -> None:
        self.name = name
        self.service = service
        self.resident_bytes = memory_bytes
        self.signals: list[str] = []
        self.ignores_sigterm = False
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @property
    def target(self) -> str:
        return self.service.target

    def memory_bytes(self) -> int:
        return self.resident_bytes

    async def wait(self) -> str:
        reason = await asyncio.shield(self.ended)
        await self.service.stop()
        return reason

    def terminate(self) -> None:
        self.signals.append("terminate")
        if not self.ignores_sigterm:
            self.end("The process ended with exit code 0.")

    def kill(self) -> None:
        self.signals.append("kill")
        self.end("The process was terminated by SIGKILL.")

    def end(self, reason: str) -> None:
        """End the process. Does nothing if it has ended."""
        if not self.ended.done():
            self.ended.set_result(reason)


class FakeLauncher:
    """Starts fake processes. It is a `Launch`.

    Attributes:
        processes: All processes that were started.
        script: What their services do.
        is_held: True if new services are not ready until a test makes them so.
        error: The error of the next starts; None if they succeed.
        resident_bytes: The memory of each new process by the name of its model.
    """

    def __init__(self, script: Sequence[Step] = ()) -> None:
        self.processes: list[FakeProcess] = []
        self.script = list(script)
        self.is_held = False
        self.error: OSError | ValueError | None = None
        self.resident_bytes: dict[str, int] = {}

    async def __call__(self, hosted: HostedModel) -> FakeProcess:
        if self.error is not None:
            raise self.error
        service = FakeService(models=[model(hosted.name)])
        if self.script:
            service.script = self.script
        await service.__aenter__()
        await service.set_ready(not self.is_held)
        memory_bytes = self.resident_bytes.get(hosted.name, NO_MEMORY)
        process = FakeProcess(hosted.name, service, memory_bytes)
        self.processes.append(process)
        return process

    @property
    def started(self) -> list[str]:
        """The names of the models whose processes were started, in order."""
        return [process.name for process in self.processes]

    @property
    def running(self) -> list[str]:
        """The names of the models whose processes have not ended."""
        return [process.name for process in self.processes if not process.ended.done()]
