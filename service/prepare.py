"""`python -m service.prepare` makes the files that a first start of the service would make.

It takes the service's options, loads the model as the service does, into the same cache directory,
and ends. Run it while an image is built, or on a volume before the first replica starts. Exit codes
are those of the service.
"""

import asyncio
import logging
import os
import sys
from typing import Self

import structlog
from pydantic import model_validator
from pydantic_settings import SettingsConfigDict

from chatrpc_process.check import check_listener
from chatrpc_process.errors import ConfigError
from chatrpc_process.logs.configuration import configure_logging
from service.config import ServiceSettings
from service.engines import BACKENDS
from service.errors import ModelLoadError
from service.openmp import bound_spinning
from service.runtimes import check_runtime, load_runtime_factory

log = structlog.get_logger("service.prepare")


class PrepareSettings(ServiceSettings):
    """Make the files that a first start of the chatrpc inference service would make, and exit.

    It takes all options of the service and listens on no port.
    """

    model_config = SettingsConfigDict(cli_prog_name="python -m service.prepare")

    @model_validator(mode="after")
    def _remote_address_has_authentication(self) -> Self:
        return self  # it does not listen


def main() -> int:
    try:
        settings = PrepareSettings.load(sys.argv[1:])
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201  # logs are not set up yet
        return 2
    if settings.check:
        findings = check_listener(settings)
        findings.attempt(lambda: check_runtime(settings))
        return findings.report()
    configure_logging(settings.log_level, settings.log_format)
    settings.log_warnings()
    bound_spinning()
    try:
        asyncio.run(make_files(settings))
    except (ConfigError, ModelLoadError) as error:
        log.error("prepare_failed", reason=str(error))  # noqa: TRY400  # the text is enough
        return 2 if isinstance(error, ConfigError) else 1
    return 0


async def make_files(settings: ServiceSettings) -> None:
    """Load the model and drop it. A backend without an engine has no files.

    Raises:
        ConfigError: The engine or backend cannot be imported, or it rejects the options.
        ModelLoadError: The model cannot be served.
    """
    make_runtime = load_runtime_factory(settings)
    if settings.engine in BACKENDS:
        log.info("nothing_to_prepare", engine=settings.engine)
        return
    runtime = make_runtime()
    try:
        card = (await runtime.load()).card
        log.info("prepared", model=card.id, max_model_len=card.max_model_len)
    finally:
        await runtime.stop()


if __name__ == "__main__":
    exit_code = main()
    logging.shutdown()
    os._exit(exit_code)  # see service/__main__.py
