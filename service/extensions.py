"""Chooses the further gRPC services of the process."""

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec

from chatrpc_process.errors import ConfigError
from service.config import ServiceSettings
from service.rpc.server import ServiceExtension
from service.rpc.serving.lifecycle import Lifecycle


def load_extensions(
    settings: ServiceSettings,
) -> Sequence[Callable[[Lifecycle], ServiceExtension]]:
    """Import the further services that the settings name. They are not made yet.

    Raises:
        ConfigError: A package that they need is not installed.
    """
    if not settings.serve_vllm_protocol:
        return ()
    if find_spec("smg_grpc_proto") is None:
        raise ConfigError(
            "serve_vllm_protocol needs a package that is not installed: "
            "pip install 'chatrpc[vllm-protocol]'"
        )
    return (import_module("service.vllm_protocol.extension").VllmProtocol,)
