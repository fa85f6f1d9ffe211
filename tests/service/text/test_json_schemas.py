import json

import pytest
import structlog

from service.domain.chat import JsonLayout
from service.errors import InvalidField, UnsupportedField
from service.text import json_schemas
from service.text.json_schemas import JsonSchema, check_parameters

SET = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}


def schema(value: object, *, is_strict: bool = False) -> JsonSchema:
    return JsonSchema(json.dumps(value), "there", JsonLayout.FLEXIBLE, is_strict)


@pytest.mark.parametrize("attempt", range(2))  # the second time, it is in the cache
def test_error_has_the_field_of_the_keyword(attempt: int) -> None:
    with pytest.raises(InvalidField) as invalid:
        schema({"items": {"type": 5}}).rules()
    assert invalid.value.field == "there.items.type"
    with pytest.raises(UnsupportedField) as unsupported:
        schema({"properties": {"a b": SET}}, is_strict=True).rules()
    assert unsupported.value.field == 'there.properties["a b"].uniqueItems'


def test_rules_are_cached_after_the_first_use() -> None:
    new = schema({"const": "asked for once"})
    assert not new.is_known()
    rules = new.rules()
    assert new.is_known()
    assert schema({"const": "asked for once"}).rules() is rules
    assert not schema({"const": "asked for once"}, is_strict=True).is_known()


def test_unenforced_keywords_are_logged_once() -> None:
    lenient = schema({"properties": {"logged": SET}})
    with structlog.testing.capture_logs() as logs:
        lenient.rules()
        lenient.rules()
    assert logs == [
        {
            "event": "schema_weakened",
            "log_level": "info",
            "field": "there",
            "keywords": [".properties.logged.uniqueItems"],
            "num_keywords": 1,
        }
    ]


def test_cache_is_limited_by_its_length() -> None:
    cache = json_schemas._RulesCache(max_length=5_000)
    schemas = [schema({"const": str(i) * 500}) for i in range(20)]
    for each in schemas:
        cache.put(each, each._read())
    assert cache._length <= 5_000
    assert cache.get(schemas[-1]) is not None
    assert cache.get(schemas[0]) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not valid JSON"),
        ("[]", "an object or a boolean"),
        ("false", "must be an object"),
        ('{"type": "array"}', "must be an object"),
        ('{"type": ["string", "null"]}', "must be an object"),
        (" " * 131_073, "at most 131072 characters"),
    ],
)
def test_parameters_that_are_not_an_object_are_rejected(text: str, says: str) -> None:
    with pytest.raises(InvalidField, match=says) as caught:
        check_parameters(text, "there")
    assert caught.value.field == "there"


@pytest.mark.parametrize(
    "text", ["true", "{}", '{"type": ["object", "null"]}', '{"$ref": "#/$defs/a"}']
)
def test_parameters_that_can_be_an_object_are_accepted(text: str) -> None:
    check_parameters(text, "there")
