"""Everything that a first start of the service makes once, made now: `python -m service.prepare`.

It takes the service's options, loads the model as the service would, into the same cache directory,
and ends: while an image is built, or on a volume before the first replica starts. Exit codes are
those of the service.
"""

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
from service.errors import ModelLoadError
from service.model import ModelLoader
from service.openmp import bound_spinning

log = structlog.get_logger("service.prepare")


class PrepareSettings(ServiceSettings):
    """chatrpc inference service: what a first start makes, made beforehand.

    It takes all options of the service, and listens nowhere.
    """

    model_config = SettingsConfigDict(cli_prog_name="python -m service.prepare")

    @model_validator(mode="after")
    def _is_not_open_by_accident(self) -> Self:
        return self


def main() -> int:
    try:
        settings = PrepareSettings.load(sys.argv[1:])
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201  # logs are not set up yet
        return 2
    if settings.check:
        return check_listener(settings).report()
    configure_logging(settings.log_level, settings.log_format)
    settings.log_warnings()
    bound_spinning()
    loader = ModelLoader(settings)
    try:
        _, max_model_len = loader.load()
    except ModelLoadError as error:
        log.error("prepare_failed", reason=str(error))  # noqa: TRY400  # the text is the whole story
        return 1
    log.info("prepared", model=loader.model_id, max_model_len=max_model_len)
    return 0


if __name__ == "__main__":
    exit_code = main()
    logging.shutdown()
    os._exit(exit_code)  # as the service does: torch's threads outlive the interpreter badly
