"""The table of options: its fields exist, its names are found again, and the page has it."""

import re

import pytest

from chatrpc.v1 import chat_pb2, completion_pb2
from service.errors import UnsupportedField
from service.upstream.dialects import OPTIONS, Dialect, Names
from tests.support.sources import ROOT

_MESSAGES = (chat_pb2.ChatCompletionParams.DESCRIPTOR, completion_pb2.CompletionParams.DESCRIPTOR)
_PARTS = {"messages.content.image", "prompts.text", "prompts.token_ids"}


@pytest.mark.parametrize("path", [*OPTIONS])
def test_every_row_is_a_field_of_a_request(path: str) -> None:
    assert len(OPTIONS[path]) == len(Dialect)
    first, *rest = path.split(".")
    found = [field for message in _MESSAGES if (field := message.fields_by_name.get(first))]
    for name in rest:
        inner = [field.message_type for field in found if field.message_type]
        found = [field for each in inner if (field := each.fields_by_name.get(name))]
    assert found


def test_every_field_of_requests_is_in_the_table() -> None:
    """A new field of the protos needs a row, or a reason here."""
    without_effect = {
        *("verbosity", "user", "safety_identifier", "metadata", "store", "prompt_cache_key"),
        *("service_tier", "modalities", "audio", "prediction", "suffix"),
    }
    containers = {"model", "messages", "sampling", "prompt", "prompts", "response_format"}
    shared = {"truncate_prompt_tokens"}  # the row of `prompt.truncate_prompt_tokens`
    names = {
        *(field.name for message in _MESSAGES for field in message.fields),
        *(f"sampling.{field.name}" for field in chat_pb2.SamplingParams.DESCRIPTOR.fields),
        *(f"prompt.{field.name}" for field in chat_pb2.PromptOptions.DESCRIPTOR.fields),
        *(f"response_format.{field.name}" for field in chat_pb2.ResponseFormat.DESCRIPTOR.fields),
    } - {"response_format.text"}
    assert names - OPTIONS.keys() == without_effect | containers | shared


@pytest.mark.parametrize("dialect", list(Dialect))
def test_name_of_a_field_leads_back_to_it(dialect: Dialect) -> None:
    names = Names(dialect)
    several = {"response_format", "prompt", "structured_outputs"}
    for field, row in OPTIONS.items():
        name = row[list(Dialect).index(dialect)]
        if name is None:
            with pytest.raises(UnsupportedField) as caught:
                names.of(field, "some.path")
            assert caught.value.field == "some.path"
        elif name.partition(".")[0] not in several:
            assert names.field_of(name) == field


@pytest.mark.parametrize(
    ("param", "field"),
    [
        ("messages", "messages"),
        ("messages[1].content", "messages[1].content"),
        ("body.messages.0.role", "messages[0].role"),
        ("max_tokens", "sampling.max_completion_tokens"),
        ("tools[2].function.name", "tools[2].function.name"),
        ("response_format.json_schema", "response_format"),
        ("prompt", "prompts"),
        ("n", "sampling.n"),
        ("input_tokens", ""),
        ("", ""),
        ("...", ""),
    ],
)
def test_parameter_of_an_error_is_our_field(param: str, field: str) -> None:
    assert Names(Dialect.VLLM).field_of(param) == field


def test_nested_names_are_set_in_objects() -> None:
    body: dict[str, object] = {}
    Names(Dialect.VLLM).put(body, "response_format.regex", "a+")
    assert body == {"structured_outputs": {"regex": "a+"}}


def test_page_has_the_table() -> None:
    """The rows of docs/engines.md are those of the table."""
    page = (ROOT / "docs/engines.md").read_text()
    rows = re.findall(r"^\| `([a-z_.]+)` \|(.+)\|$", page, re.MULTILINE)
    documented = {field: [cell.strip(" `") for cell in cells.split("|")] for field, cells in rows}
    expected = {field: [name or "-" for name in names] for field, names in OPTIONS.items()}
    assert {field: documented.get(field) for field in expected} == expected
