"""The methods of all services of the protos."""

import pkgutil
from importlib import import_module
from typing import Any

import chatrpc.v1

# The descriptors of the methods by their full names, such as
# `chatrpc.v1.ChatService/CreateChatCompletion`.
METHODS: dict[str, Any] = {
    f"{service.full_name}/{method.name}": method
    for module in pkgutil.iter_modules(chatrpc.v1.__path__)
    if module.name.endswith("_service_pb2")
    for service in import_module(f"chatrpc.v1.{module.name}").DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
