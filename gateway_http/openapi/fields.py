"""The proto fields and the description of each field of the HTTP API.

Descriptions are made from the comments of the .proto files (`chatrpc.v1.comments`) and the notes
beside the structs' fields (`protocol/field_notes.py`). The OpenAPI document and docs/parity.md use
them.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, get_type_hints

from msgspec import Meta, Struct, inspect

from chatrpc.v1.comments import COMMENTS
from gateway_http.protocol import completion, embeddings, request, response, sampling, tokens

# The messages in which the fields of a struct are looked up. A struct that is not listed has the
# message of its own name.
_MESSAGES: Mapping[type[Struct], tuple[str, ...]] = {
    sampling.SamplingParameters: ("SamplingParams",),
    sampling.GenerationRequest: (
        "ChatCompletionParams",
        "CompletionParams",
        "PromptOptions",
        "SamplingParams",
    ),
    sampling.JsonSchema: ("JsonSchemaFormat",),
    sampling.JsonSchemaFormat: ("ResponseFormat",),
    sampling.StructuredOutputs: ("ResponseFormat",),
    request.ChatCompletionRequest: ("ChatCompletionParams", "SamplingParams", "PromptOptions"),
    request.Message: ("ChatMessage",),
    request.TextPart: ("ContentPart",),
    request.RefusalPart: ("ChatMessage",),
    request.FilePart: ("ContentPart",),
    request.ImageUrl: ("ImageContent",),
    request.InputAudio: ("AudioContent",),
    request.InputFile: ("FileContent",),
    request.FunctionTool: ("Tool",),
    request.AllowedToolsChoice: ("ToolChoice",),
    completion.CompletionRequest: ("CompletionParams", "SamplingParams"),
    completion.Completion: ("Completion", "CompletionChunk"),
    completion.CompletionChoice: ("CompletionChoice", "CompletionChoiceDelta"),
    response.Message: ("ChatMessage",),
    response.ChunkChoice: ("ChoiceDelta",),
    response.TopLogprob: ("TokenLogprob",),
    response.PromptLogprob: ("TokenLogprob", "PromptToken"),
    response.CompletionTokensDetails: ("Usage",),
    embeddings.EmbeddingsRequest: ("CreateEmbeddingsRequest",),
    tokens.TokenizeRequest: ("TokenizeRequest", "PromptOptions"),
}


class Field(NamedTuple):
    """A field of the HTTP API.

    Args:
        proto_fields: The proto fields that it is converted to, such as
            `SamplingParams.temperature`. Empty if there are none.
        is_rejected: True if every value except null is rejected.
    """

    proto_fields: tuple[str, ...]
    description: str
    is_rejected: bool = False


def fields_of(struct: type[Struct]) -> dict[str, Field]:
    """Return the fields of a struct by name."""
    hints = get_type_hints(struct, include_extras=True)
    return {name: _field(struct, name, hints[name]) for name in struct.__struct_fields__}


def _field(struct: type[Struct], name: str, hint: Any) -> Field:
    """Make a field from the notes in its annotation.

    Raises:
        KeyError: The field has no note, and the struct's messages have no field of this name.
    """
    notes = [meta for meta in getattr(hint, "__metadata__", ()) if isinstance(meta, Meta)]
    extra = {key: value for meta in notes for key, value in (meta.extra or {}).items()}
    if "proto_fields" in extra:
        proto_fields = extra["proto_fields"]
    else:
        messages = _MESSAGES.get(struct, (struct.__name__,))
        proto_fields = [m + "." + name for m in messages if m + "." + name in COMMENTS]
        if not proto_fields:
            raise KeyError(f"{struct.__name__}.{name} has neither a proto field nor a note.")
    sentences = [meta.description for meta in notes if meta.description]
    if extra.get("has_comment", True):
        sentences.insert(0, COMMENTS[proto_fields[0]].removeprefix("Required. "))
    return Field(tuple(proto_fields), " ".join(sentences), extra.get("is_rejected", False))


def structs_within(roots: Iterable[type[Struct]]) -> Iterator[type[Struct]]:
    """Yield each struct of `roots`, and each struct that their fields contain, once."""
    found: dict[type[Struct], None] = {}
    for root in roots:
        _add_structs(inspect.type_info(root), found)
    yield from found


def _add_structs(node: Any, found: dict[type[Struct], None]) -> None:
    """Add the structs in `node`, msgspec's description of a type, which is a tree."""
    if isinstance(node, tuple):
        for each in node:
            _add_structs(each, found)
    elif isinstance(node, inspect.Type | inspect.Field):
        if isinstance(node, inspect.StructType):
            if node.cls in found:
                return
            found[node.cls] = None
        for name in node.__struct_fields__:
            _add_structs(getattr(node, name), found)
