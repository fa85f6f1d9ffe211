"""The service with a call that blocks the event loop. Run it as a module."""

import os
import time
from typing import Any

from service.__main__ import main
from service.rpc import chat_servicer


def hang(*_: Any, **__: Any) -> Any:
    time.sleep(3600)


if __name__ == "__main__":
    chat_servicer.num_choices = hang  # type: ignore[attr-defined]
    os._exit(main())
