"""The models of a service, as a table and as JSON."""

import json
from collections.abc import Iterable, Iterator

import grpc
from google.protobuf.json_format import MessageToDict
from rich import box
from rich.table import Table
from rich.text import Text

from chatrpc.v1 import model_service_pb2, model_service_pb2_grpc
from chatrpc_cli.credentials import credentials


def served(channel: grpc.Channel) -> Iterator[model_service_pb2.Model]:
    """Yield every served model. Pages are fetched on demand."""
    stub = model_service_pb2_grpc.ModelServiceStub(channel)
    request = model_service_pb2.ListModelsRequest()
    while True:
        page = stub.ListModels(request, metadata=credentials())
        yield from page.models
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def as_table(models: Iterable[model_service_pb2.Model]) -> Table:
    """Return a table with one row for each model."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("model", overflow="fold")
    table.add_column("engine", overflow="fold")
    table.add_column("context", justify="right")
    table.add_column("aliases", overflow="fold")
    table.add_column("weights", overflow="fold")
    for model in models:
        context, aliases = f"{model.max_model_len:,}", ", ".join(model.aliases)
        cells = model.id, model.engine, context, aliases, model.root
        table.add_row(*map(Text, cells))  # a plain string would be parsed as rich markup
    return table


def as_json(models: Iterable[model_service_pb2.Model]) -> str:
    """Return a JSON array of `chatrpc.v1.Model`, with all fields under their proto names."""
    return json.dumps(
        [
            MessageToDict(
                model,
                preserving_proto_field_name=True,
                always_print_fields_with_no_presence=True,
            )
            for model in models
        ],
        indent=2,
    )
