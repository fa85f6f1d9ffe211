"""Write docs/parity.md: the fields of the HTTP API and of the gRPC API, side by side.

`make docs` runs it. The text around the tables is in docs/parity.template.md. A line such as
`{{ request.Message request.TextPart | Conversation }}` there becomes a table of these structs of
`gateway_http/protocol`. Fields that only the gRPC API has are listed with the other fields of their
message, or with the messages after the bar.
"""

import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import NamedTuple

from msgspec import Struct

from chatrpc.v1.comments import COMMENTS
from gateway_http import protocol
from gateway_http.openapi.fields import Field, fields_of
from gateway_http.protocol import sampling

_DOCS = Path(__file__).parent
PAGE = _DOCS / "parity.md"
TEMPLATE = _DOCS / "parity.template.md"

_MODULES: Mapping[str, ModuleType] = {
    name: import_module(f"{protocol.__name__}.{name}")
    for _, name, _ in iter_modules(protocol.__path__)
}
_TABLE = re.compile(r"^\{\{ ([\w. ]*)(?:\| ([\w ]+) )?\}\}$", re.MULTILINE)

# How HTTP expresses what only the gRPC API has a field for.
_ONLY_GRPC = {
    "CreateChatCompletionRequest.params": "HTTP: the body.",
    "StreamChatCompletionRequest.params": "HTTP: the body, with `stream`.",
    "ChatCompletionParams.sampling": "HTTP: its fields are fields of the request.",
    "ChatCompletionParams.prompt": "HTTP: its fields are fields of the request.",
    "ImageContent.data": "HTTP: a `data:` URL.",
    "ImageContent.mime_type": "HTTP: part of the `data:` URL.",
    "ToolChoice.mode": "HTTP: the strings `none`, `auto` and `required`.",
    "ResponseFormat.text": "HTTP: the type `text`.",
    "CreateChatCompletionResponse.completion": "HTTP: the body.",
    "StreamChatCompletionResponse.chunk": "HTTP: an event.",
    "ChoiceDelta.num_tokens": "HTTP: counted in `usage` with `continuous_usage_stats`.",
    "MatchedStop.token_id": "HTTP: `stop_reason` as a number.",
    "TokenLogprob.token_id": "HTTP: the key in `prompt_logprobs`, and `token_ids`.",
    "CreateCompletionRequest.params": "HTTP: the body.",
    "StreamCompletionRequest.params": "HTTP: the body, with `stream`.",
    "CompletionParams.sampling": "HTTP: its fields are fields of the request.",
    "CompletionPrompt.text": "HTTP: a string in `prompt`.",
    "CompletionPrompt.token_ids": "HTTP: numbers in `prompt`.",
    "TokenIds.ids": "HTTP: numbers in `prompt`.",
    "CreateCompletionResponse.completion": "HTTP: the body.",
    "StreamCompletionResponse.chunk": "HTTP: an event.",
    "CompletionChoiceDelta.num_tokens": "HTTP: counted in `usage` with `continuous_usage_stats`.",
    "PromptToken.token_id": "HTTP: the key in `prompt_logprobs`.",
    "ListModelsRequest.page_size": "HTTP: one page with all models.",
    "ListModelsRequest.page_token": "HTTP: one page with all models.",
    "ListModelsResponse.next_page_token": "HTTP: one page with all models.",
    "GetModelRequest.id": "HTTP: in the path.",
    "GetModelResponse.model": "HTTP: the body.",
    "DecisionQuestion.predicate": "HTTP: the type of the question.",
    "DecisionQuestion.choice": "HTTP: the type of the question.",
    "DecisionQuestion.score": "HTTP: the type of the question.",
    "DecisionAnswer.predicate": "HTTP: its type.",
    "DecisionAnswer.choice": "HTTP: its type.",
    "DecisionAnswer.score": "HTTP: its type.",
    "PredicateAnswer.true_option": "HTTP: not returned, since OpenAI's form has no such field.",
    "PredicateAnswer.false_option": "HTTP: not returned, since OpenAI's form has no such field.",
    "OptionProbability.logprob": "HTTP: not returned, since OpenAI's form has no such field.",
    "CreateDecisionResponse.system_fingerprint": "HTTP: not returned, since OpenAI's form has no "
    "such field.",
    "CreateEmbeddingsRequest.truncation": "HTTP: its fields are fields of the request.",
    "ClassifyRequest.truncation": "HTTP: its fields are fields of the request.",
    "ScoreRequest.truncation": "HTTP: its fields are fields of the request.",
    "RerankRequest.truncation": "HTTP: its fields are fields of the request.",
    "ClassifyRequest.pair_inputs": "HTTP: not offered; `POST /v1/score` takes pairs.",
    "TextPairs.pairs": "HTTP: not offered; `POST /v1/score` takes pairs.",
    "ModelCapabilities.embedding_dimensions": "HTTP: not returned.",
    "ModelCapabilities.prompt_names": "HTTP: not returned.",
    "ModelCapabilities.labels": "HTTP: not returned.",
    "Conversation.prompt": "HTTP: its fields are fields of the request.",
}


class Row(NamedTuple):
    """A row of a table. `http` is None for a field that only the gRPC API has."""

    http: str | None
    field: Field

    def __str__(self) -> str:
        http = "none" if self.http is None else f"`{self.http}`"
        if self.field.is_rejected:
            return f"| {http} | rejected | {self.field.description} |"
        protos = ", ".join(f"`{name}`" for name in self.field.proto_fields) or "none"
        return f"| {http} | {protos} | {self.field.description} |"


def page() -> str:
    """Return the page."""
    tables = dict(_tables(TEMPLATE.read_text()))
    return _TABLE.sub(lambda match: _table(tables[match[0]]), TEMPLATE.read_text())


def rows() -> list[Row]:
    """Return the rows of all tables."""
    return [row for _, table in _tables(TEMPLATE.read_text()) for row in table]


def _table(rows: list[Row]) -> str:
    return "\n".join(("| HTTP | gRPC | Description |", "|---|---|---|", *map(str, rows)))


def _tables(template: str) -> Iterator[tuple[str, list[Row]]]:
    """Yield each placeholder with the rows of its table."""
    tables = [
        (match[0], list(_http_rows(match[1].split())), (match[2] or "").split())
        for match in _TABLE.finditer(template)
    ]
    listed = {name for _, rows, _ in tables for row in rows for name in row.field.proto_fields}
    for placeholder, rows, messages in tables:
        of_rows = (name.split(".")[0] for row in rows for name in row.field.proto_fields)
        for message in dict.fromkeys((*messages, *of_rows)):
            for name, over_http in _ONLY_GRPC.items():
                if name.split(".")[0] == message and name not in listed:
                    listed.add(name)
                    rows.append(Row(None, Field((name,), f"{COMMENTS[name]} {over_http}")))
        yield placeholder, rows


def _http_rows(names: list[str]) -> Iterator[Row]:
    for name in names:
        module, _, struct_name = name.partition(".")
        struct: type[Struct] = getattr(_MODULES[module], struct_name)
        inherited = {
            field for base in struct.__bases__ for field in getattr(base, "__struct_fields__", ())
        }
        is_shared = issubclass(struct, sampling.SamplingParameters)
        by_name = sorted(fields_of(struct).items(), key=lambda item: item[1].is_rejected)
        for field_name, field in by_name:
            is_own = field_name not in inherited or field.is_rejected
            if is_own or not is_shared:
                yield Row(f"{_shown(module, struct_name)}.{field_name}", field)


def _shown(module: str, struct: str) -> str:
    """Return the name of a struct, after its module's if another has a struct of this name."""
    modules = [
        each for each in _MODULES.values()
        if getattr(vars(each).get(struct), "__module__", None) == each.__name__
    ]  # fmt: skip
    return struct if len(modules) == 1 else module.capitalize() + struct


if __name__ == "__main__":
    PAGE.write_text(page())
