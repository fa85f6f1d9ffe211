"""The peer `transformers serve`, with continuous batching."""

import json
from collections.abc import Sequence
from pathlib import Path

from bench.client_http import Body
from bench.peers.environment import TORCH, Environment
from bench.request import Request
from bench.server import Ports, Server

VERSION = "5.23.0"
_PACKAGES = (TORCH, f"transformers[serving]=={VERSION}")
# Number of blocks of 256 tokens of 23 KB each: 2 GiB of keys and values, as for the other servers.
# Without this, it takes most of the machine's memory.
_NUM_BLOCKS = 364
ENVIRONMENT = Environment("transformers", _PACKAGES)


def install() -> None:
    """Install the server.

    Raises:
        InstallError: The installation failed.
    """
    ENVIRONMENT.install(lambda environment: environment.pip(*_PACKAGES))


def body(model: str, request: Request) -> Body:
    """Return the request body. It names an end token that never occurs, instead of `ignore_eos`."""
    generation = {"max_new_tokens": request.num_tokens, "do_sample": False, "eos_token_id": -1}
    return {
        "model": model,
        "messages": [{"role": m.role, "content": m.content} for m in request.messages],
        "max_tokens": request.num_tokens,
        "generation_config": json.dumps(generation),
        "stream": True,
    }


def server(checkpoint: Path) -> Server:
    def commands(ports: Ports) -> Sequence[Sequence[str]]:
        listen = ("--host", "127.0.0.1", "--port", str(ports.http))
        model = (str(checkpoint), "--dtype", "bfloat16", "--device", "cpu")
        batching = ("--continuous-batching", "--cb-num-blocks", str(_NUM_BLOCKS))
        return [(*ENVIRONMENT.script("transformers"), "serve", *model, *batching, *listen)]

    return Server(
        name="transformers",
        title="transformers serve, bf16",
        version=VERSION,
        settings=f"bfloat16, `--continuous-batching --cb-num-blocks {_NUM_BLOCKS}`",
        model=str(checkpoint),
        commands=commands,
        env=ENVIRONMENT.environ(),
        dialect=body,
    )
