import pytest

from service.text.schema.documents import Document
from service.text.schema.errors import SchemaError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "an object or a boolean"),
        ('"x"', "an object or a boolean"),
        ('{"const": "\\ud800"}', "surrogate"),
        ('{"a": 1, "a": 2}', "occurs twice"),
        (" " * 131_073, "may have at most 131072 characters"),
        ('{"a":' * 70 + "1" + "}" * 70, "at most 64 levels"),
        ('{"enum": [' + "[" * 70 + "]" * 70 + "]}", "at most 64 levels"),
        ('{"$defs": {"a": {"$anchor": "x"}, "b": {"$anchor": "x"}}}', "two anchors named"),
    ],
)
def test_malformed_document_is_rejected(text: str, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        Document(text)


NESTED = """{
  "$id": "https://example.com/a/root.json",
  "$defs": {
    "one": {"$anchor": "first", "const": 1},
    "two": {"$id": "sub/two.json", "$defs": {"x": {"const": 2}}, "$anchor": "inner"},
    "three": {"$id": "#old", "const": 3},
    "a b": {"const": {"$id": "no.json"}}
  },
  "prefixItems": [{"const": 4}]
}"""


@pytest.mark.parametrize(
    ("reference", "path"),
    [
        ("#", ""),
        ("", ""),
        ("#/$defs/one", ".$defs.one"),
        ("#first", ".$defs.one"),
        ("sub/two.json", ".$defs.two"),
        ("https://example.com/a/sub/two.json#/$defs/x", ".$defs.two.$defs.x"),
        ("sub/two.json#inner", ".$defs.two"),
        ("#old", ".$defs.three"),
        ("#/$defs/a%20b", '.$defs["a b"]'),
        ("#/prefixItems/0", ".prefixItems[0]"),
        ("root.json#/$defs/one", ".$defs.one"),
    ],
)
def test_reference_is_resolved_within_the_document(reference: str, path: str) -> None:
    document = Document(NESTED)
    assert document.resolve(reference, document.root, ".$ref")[1] == path


@pytest.mark.parametrize(
    "reference", ["#/nowhere", "#nobody", "other.json", "no.json", "#/prefixItems/1", "#/$id", 5]
)
def test_unresolvable_reference_is_rejected_with_its_path(reference: object) -> None:
    document = Document(NESTED)
    with pytest.raises(SchemaError) as caught:
        document.resolve(reference, document.root, ".x.$ref")
    assert caught.value.path == ".x.$ref"


def test_keyword_id_is_an_identifier_only_in_draft_4() -> None:
    nested = '"definitions": {"a": {"id": "b.json", "x": {}}}, "properties": {"id": {"id": "c"}}'
    old = Document(f'{{"$schema": "http://json-schema.org/draft-04/schema#", {nested}}}')
    assert old.resolve("b.json#/x", old.root, "")[1] == ".definitions.a.x"
    with pytest.raises(SchemaError):
        new = Document(f"{{{nested}}}")
        new.resolve("b.json#/x", new.root, "")


def test_reference_in_an_embedded_schema_is_relative_to_that_schema() -> None:
    document = Document(NESTED)
    embedded = document.root["$defs"]["two"]
    assert document.resolve("#/$defs/x", embedded, "")[1] == ".$defs.two.$defs.x"
    assert document.resolve("../root.json", embedded, "")[1] == ""
