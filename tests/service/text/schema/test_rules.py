"""The effect of each keyword: values that must be allowed, and values that must not."""

from typing import Any

import pytest

from service.domain.chat import JsonLayout
from service.text.schema.errors import SchemaError, UnsupportedKeyword
from tests.service.text.schema.grammar_checks import accepts, compile_schema, schema_rules

OBJECT = {"type": "object"}

# Each case has a schema, texts that match it, and texts that do not.
CASES: dict[str, tuple[Any, list[str], list[str]]] = {
    "true": (True, ["1", "[null]", '{"a": {}}', '"x"'], ["", "nul"]),
    "type": ({"type": "integer"}, ["0", "-7", "12"], ["1.5", '"1"', "01", "-0", "null"]),
    "types": ({"type": ["string", "null"]}, ['"a"', "null"], ["1", "true"]),
    "number": ({"type": "number"}, ["1", "-0.5", "1e5", "2.5E-3"], [".5", "1.", "+1", "1e"]),
    "boolean": ({"type": "boolean"}, ["true", "false"], ["0", '"true"']),
    "const": ({"const": 2**53 + 1}, [str(2**53 + 1)], [str(2**53), str(2**53 + 2)]),
    "const null": ({"const": None}, ["null"], ["0", '""']),
    "const object": ({"const": {"a": [1]}}, ['{"a":[1]}', '{ "a": [ 1 ] }'], ['{"a":1}', "{}"]),
    "const array": ({"const": [1, "a"]}, ['[1,"a"]', '[1, "a"]'], ["[1]", '["a",1]']),
    "const decimal": ('{"const": 0.1000}', ["0.1000"], ["0.2"]),
    "enum": (
        {"enum": [1, "a", None, [1], {"x": 2**64 + 1}]},
        ["1", '"a"', "null", "[1]", '{"x":18446744073709551617}'],
        ["2", '{"x":18446744073709551616}', '{"x":18446744073709552000}'],
    ),
    "enum with type": ({"enum": [1, "a", True], "type": "string"}, ['"a"'], ["1", "true"]),
    "enum with bounds": ({"enum": [1, 5, "a"], "minimum": 3}, ["5", '"a"'], ["1"]),
    "enum with pattern": ({"enum": ["ab", "b", 3], "pattern": "^a"}, ['"ab"', "3"], ['"b"']),
    "minimum": (
        {"type": "integer", "minimum": 2**53 + 1},
        [str(2**53 + 1), str(10**30)],
        [str(2**53), "0", f"-{2**53 + 1}"],
    ),
    "exclusiveMinimum": (
        {"type": "integer", "exclusiveMinimum": 2**53},
        [str(2**53 + 1)],
        [str(2**53), str(2**53 - 1)],
    ),
    "maximum": ({"type": "integer", "maximum": 10**17 - 1}, ["9" * 17, "-5"], ["1" + "0" * 17]),
    "bounds of 64 bits": (
        {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
        [str(-(2**63)), str(2**63 - 1), "0"],
        [str(-(2**63) - 1), str(2**63)],
    ),
    "bounds of draft 4": (
        {"type": "integer", "minimum": 3, "exclusiveMinimum": True, "maximum": 5},
        ["4", "5"],
        ["3", "6"],
    ),
    "decimal bounds": (
        '{"type": "number", "minimum": 0.1, "exclusiveMaximum": 1e-1}',
        [],
        ["0.1"],
    ),
    "small decimals": (
        '{"type": "number", "minimum": 1e-7, "maximum": 0.3}',
        ["0.0000001", "0.3", "0.30", "0.1"],
        ["0", "0.00000009", "0.31", "1e-7"],
    ),
    "huge decimals": (
        '{"type": "number", "minimum": 1e19, "maximum": 1e400}',
        ["1" + "0" * 19, "1" + "0" * 400, "1" + "0" * 19 + ".5"],
        ["9" * 19, "1" + "0" * 400 + ".5", "2" + "0" * 400],
    ),
    "multipleOf": ({"type": "integer", "multipleOf": 7}, ["0", "14", "-7"], ["1", "15"]),
    "multipleOf 0.01": ('{"type": "number", "multipleOf": 0.01}', ["1.25", "3", "0.5"], ["0.125"]),
    "multipleOf 0.25": ('{"type": "number", "multipleOf": 0.25}', ["0.5", "2.75"], ["0.3"]),
    "multipleOf 2.5": ('{"type": "number", "multipleOf": 2.5}', ["2.5", "5.0"], ["2.6"]),
    "multipleOf 1000000": ({"type": "integer", "multipleOf": 10**6}, ["3000000"], ["1500000"]),
    "multipleOf with large bounds": (
        {"type": "integer", "multipleOf": 10, "minimum": 2**63},
        ["9223372036854775810"],
        ["9223372036854775808", "9223372036854775800"],
    ),
    "minLength": ({"type": "string", "minLength": 2}, ['"ab"', '"é\\n"'], ['"a"', '""']),
    "maxLength": ({"type": "string", "maxLength": 2}, ['"😀\\""', '""'], ['"abc"']),
    "pattern": ({"type": "string", "pattern": "b+"}, ['"abbc"'], ['"ac"']),
    "anchored pattern": ({"type": "string", "pattern": "^a|b$"}, ['"ax"', '"xb"'], ['"xay"']),
    "look-ahead": (
        {"type": "string", "pattern": r"^(?=.*\d)(?!.*x).{3,5}$"},
        ['"ab1"', '"12345"'],
        ['"abc"', '"ax1"', '"a1"', '"abcde1"'],
    ),
    "pattern of quotes": ({"type": "string", "pattern": '^["\\\\]+$'}, ['"\\"\\\\"'], ['"a"']),
    "pattern with property": (
        {"type": "string", "pattern": r"^\p{Lu}\p{Script=Greek}+$"},
        ['"Éλδ"'],
        ['"eλ"', '"Ea"'],
    ),
    "pattern and length": (
        {"type": "string", "pattern": "^a+$", "maxLength": 3},
        ['"aaa"'],
        ['"aaaa"', '"b"'],
    ),
    "format": (
        {"type": "string", "format": "date"},
        ['"2024-02-29"', '"2025-12-31"'],
        ['"2025-02-29"', '"2025-13-01"', '"2025-1-1"'],
    ),
    "unknown format": ({"type": "string", "format": "password"}, ['"x"', '""'], ["1"]),
    "properties": (
        {**OBJECT, "properties": {"a": {"type": "integer"}}, "additionalProperties": False},
        ["{}", '{"a":1}'],
        ['{"a":"x"}', '{"b":1}'],
    ),
    "required": (
        {**OBJECT, "properties": {"a": {}, "b": {}}, "required": ["b"]},
        ['{"b":1}', '{"a":1,"b":1}', '{"b":1,"c":1}'],
        ["{}", '{"a":1}'],
    ),
    "required undeclared": ({**OBJECT, "required": ["x"]}, ['{"x":1}'], ["{}", '{"y":1}']),
    "additionalProperties": (
        {**OBJECT, "properties": {"a": {}}, "additionalProperties": {"type": "integer"}},
        ['{"a":"x","b":1}'],
        ['{"b":"x"}'],
    ),
    "patternProperties": (
        {
            **OBJECT,
            "properties": {"xa": {"type": "integer"}},
            "patternProperties": {"^x": {"minimum": 3}, "y$": {"type": "string"}},
            "additionalProperties": False,
        },
        ['{"xa":3}', '{"xb":"s"}', '{"by":"s"}'],
        ['{"xa":2}', '{"xa":"s"}', '{"by":1}', '{"c":1}', '{"xb":2}'],
    ),
    "minProperties": (
        {**OBJECT, "properties": {"a": {}, "b": {}}, "minProperties": 2},
        ['{"a":1,"b":1}', '{"b":1,"c":1}'],
        ["{}", '{"a":1}', '{"c":1}'],
    ),
    "maxProperties": (
        {**OBJECT, "properties": {"a": {}, "b": {}}, "required": ["b"], "maxProperties": 2},
        ['{"b":1}', '{"a":1,"b":1}', '{"b":1,"c":1}'],
        ['{"a":1,"b":1,"c":1}', '{"a":1,"c":1}'],
    ),
    "propertyNames enum": (
        {**OBJECT, "propertyNames": {"enum": ["a", "b"]}, "additionalProperties": {"type": "null"}},
        ["{}", '{"a":null,"b":null}'],
        ['{"c":null}', '{"a":1}', '{"a":null,"a":null}'],
    ),
    "propertyNames pattern": (
        {**OBJECT, "properties": {"ab": {}, "c": {}}, "propertyNames": {"pattern": "^a"}},
        ['{"ab":1}', '{"ax":1}'],
        ['{"c":1}', '{"d":1}'],
    ),
    "propertyNames of strings": (
        {**OBJECT, "propertyNames": {"type": "string"}},
        ['{"any thing":1}'],
        ["1"],
    ),
    "dependentRequired": (
        {**OBJECT, "properties": {"a": {}, "b": {}}, "dependentRequired": {"a": ["b"]}},
        ["{}", '{"b":1}', '{"a":1,"b":1}'],
        ['{"a":1}'],
    ),
    "dependentSchemas": (
        {
            **OBJECT,
            "properties": {"a": {}, "b": {}},
            "dependentSchemas": {"a": {"properties": {"b": {"type": "integer"}}}},
            "additionalProperties": False,
        },
        ['{"b":"x"}', '{"a":1,"b":1}', '{"a":1}'],
        ['{"a":1,"b":"x"}'],
    ),
    "dependencies": (
        {**OBJECT, "properties": {"a": {}, "b": {}}, "dependencies": {"a": ["b"]}},
        ['{"a":1,"b":1}'],
        ['{"a":1}'],
    ),
    "items": ({"type": "array", "items": {"type": "null"}}, ["[]", "[null, null]"], ["[1]"]),
    "items false": ({"type": "array", "items": False}, ["[]", "[ ]"], ["[1]"]),
    "minItems": ({"type": "array", "items": {"const": 1}, "minItems": 2}, ["[1,1]"], ["[1]", "[]"]),
    "maxItems": ({"type": "array", "items": {"const": 1}, "maxItems": 2}, ["[1,1]"], ["[1,1,1]"]),
    "one item": ({"type": "array", "items": {"const": 1}, "maxItems": 1}, ["[]", "[1]"], ["[1,1]"]),
    "no item": ({"type": "array", "maxItems": 0}, ["[]"], ["[1]"]),
    "huge maxItems": ({"type": "array", "items": {"const": 1}, "maxItems": 10**30}, ["[1]"], ["1"]),
    "prefixItems": (
        {"type": "array", "prefixItems": [{"const": 1}, {"const": 2}], "items": {"const": 3}},
        ["[]", "[1]", "[1,2]", "[1,2,3,3]"],
        ["[2]", "[1,3]", "[1,2,4]"],
    ),
    "tuple of draft 7": (
        {"type": "array", "items": [{"const": 1}, {"const": 2}], "additionalItems": False},
        ["[1,2]", "[1]", "[]"],
        ["[2]", "[1,2,3]"],
    ),
    "contains": (
        {"type": "array", "items": {"type": ["string", "null"]}, "contains": {"const": "x"}},
        ['["x"]', '[null,"x",null]', '["x","x"]'],
        ["[]", "[null]"],
    ),
    "minContains and maxContains": (
        {
            "type": "array",
            "items": {"enum": [1, 2]},
            "contains": {"const": 1},
            "minContains": 2,
            "maxContains": 2,
        },
        ["[1,2,1]", "[2,1,1]"],
        ["[1]", "[1,1,1]", "[]"],
    ),
    "minContains without others": ({"type": "array", "minContains": 2}, ["[]"], ["1"]),
    "contains in a tuple": (
        {"prefixItems": [{"const": 1}, {"enum": [2, 3]}], "items": False, "type": "array",
         "contains": {"const": 3}},
        ["[1,3]"],
        ["[1,2]", "[1]", "[]"],
    ),
    "uniqueItems": (
        {"type": "array", "items": {"enum": ["a", "b", 1]}, "uniqueItems": True, "minItems": 2},
        ['["a","b"]', '[1,"b","a"]'],
        ['["a","a"]', '["a"]', '["a","b","a"]'],
    ),
    "uniqueItems of a tuple": (
        {"type": "array", "prefixItems": [{"type": "string"}, {"type": "null"}], "items": False,
         "uniqueItems": True},
        ['["a",null]'],
        ["[null,null]"],
    ),
    "uniqueItems false": ({"type": "array", "items": {"const": 1}, "uniqueItems": False},
                          ["[1,1]"], ["1"]),
    "uniqueItems of equal values": (
        '{"type": "array", "items": {"enum": [1, 1.0, 2]}, "uniqueItems": true}',
        ["[2]", "[2,1.0]"],
        ["[1,1.0]", "[1.0,1.0]"],
    ),
    "oneOf whose combination cannot be enforced": (
        {
            "oneOf": [
                {"type": "array", "contains": {"const": 1}, "items": {"const": 1}},
                {"type": "array", "contains": {"const": 2}, "items": {"const": 2}},
            ]
        },
        ["[1]", "[2,2]"],
        ["[]", "[1,2]"],
    ),
    "unevaluatedItems": (
        {"type": "array", "allOf": [{"prefixItems": [{"const": 1}]}], "unevaluatedItems": False},
        ["[1]", "[]"],
        ["[1,1]"],
    ),
    "unevaluatedProperties": (
        {
            **OBJECT,
            "properties": {"a": {"const": 1}},
            "allOf": [{"properties": {"b": {"const": 2}}}],
            "anyOf": [{"required": ["c"], "properties": {"c": {}}}, {"required": ["a"]}],
            "unevaluatedProperties": False,
        },
        ['{"a":1,"b":2}', '{"b":2,"c":0}', '{"a":1,"c":0}'],
        ['{"a":1,"d":1}', '{"b":2}'],
    ),
    "unevaluatedProperties of a closed object": (
        {**OBJECT, "properties": {"a": {}}, "additionalProperties": False,
         "unevaluatedProperties": False},
        ['{"a":1}'],
        ['{"b":1}'],
    ),
    "allOf": (
        {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 5}, {"not": {"const": 4}}]},
        ["3", "5"],
        ["4", "2", "6", "3.5"],
    ),
    "anyOf": ({"anyOf": [{"const": 1}, {"type": "string"}]}, ["1", '"x"'], ["2"]),
    "anyOf with siblings": (
        {"type": "integer", "anyOf": [{"minimum": 5}, {"maximum": 2}]}, ["5", "2"], ["3", '"a"'],
    ),
    "oneOf of types": ({"oneOf": [{"type": "string"}, {"type": "integer"}]}, ["1", '"a"'], ["1.5"]),
    "oneOf that overlaps": (
        {"oneOf": [{"type": "number"}, {"type": "integer", "minimum": 0}]},
        ["1.5", "-3"],
        ["3", "3.0", "0"],
    ),
    "oneOf of references": (
        {
            "$defs": {
                "cat": {**OBJECT, "properties": {"kind": {"const": "cat"}}, "required": ["kind"]},
                "dog": {**OBJECT, "properties": {"kind": {"const": "dog"}}, "required": ["kind"]},
            },
            "oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}, {"type": "null"}],
        },
        ['{"kind":"cat"}', '{"kind":"dog","x":1}', "null"],
        ['{"kind":"cow"}', "{}"],
    ),
    "oneOf of objects": (
        {"oneOf": [{**OBJECT, "required": ["a"]}, {**OBJECT, "required": ["b"]}]},
        ['{"a":1}', '{"b":1}'],
        ['{"a":1,"b":1}', "{}"],
    ),
    "not const": ({"type": "integer", "not": {"const": 5}}, ["4", "55"], ["5"]),
    "not a number in any notation": (
        {"type": "number", "not": {"const": 5}}, ["4", "5.5"], ["5", "5.0", "5.00"],
    ),
    "not enum": ({"type": "string", "not": {"enum": ["a", "b"]}}, ['"c"', '"ab"'], ['"a"', '"b"']),
    "not type": ({"type": ["string", "null"], "not": {"type": "null"}}, ['"a"'], ["null"]),
    "not pattern": ({"type": "string", "not": {"pattern": "^a"}}, ['"ba"', '""'], ['"a"', '"ab"']),
    "not required": (
        {**OBJECT, "properties": {"a": {}, "b": {}}, "not": {"required": ["a"]}},
        ['{"b":1}', "{}"],
        ['{"a":1}'],
    ),
    "not false": ({"type": "null", "not": False}, ["null"], ["1"]),
    "if then else": (
        {
            **OBJECT,
            "properties": {"kind": {"enum": ["a", "b"]}, "x": {"type": "integer"}},
            "required": ["kind"],
            "if": {"properties": {"kind": {"const": "a"}}},
            "then": {"required": ["x"]},
            "else": {"properties": {"x": False}},
        },
        ['{"kind":"a","x":1}', '{"kind":"b"}'],
        ['{"kind":"a"}', '{"kind":"b","x":1}'],
    ),
    "if without others": ({"type": "null", "if": {"type": "string"}}, ["null"], ["1"]),
    "then without others": ({"type": "null", "then": False}, ["null"], ["1"]),
    "reference to the root": (
        {**OBJECT, "properties": {"next": {"$ref": "#"}}, "additionalProperties": False},
        ["{}", '{"next":{"next":{}}}'],
        ['{"next":1}'],
    ),
    "reference with siblings": (
        {"$defs": {"n": {"type": "integer"}}, "$ref": "#/$defs/n", "minimum": 3}, ["3"], ["2"],
    ),
    "reference to an anchor": (
        {"$defs": {"n": {"$anchor": "x", "const": 1}}, "$ref": "#x"}, ["1"], ["2"],
    ),
    "reference to an identifier": (
        {
            "$id": "https://example.com/root.json",
            "$defs": {"n": {"$id": "n.json", "$defs": {"m": {"const": 1}}, "$ref": "#/$defs/m"}},
            "$ref": "n.json",
        },
        ["1"],
        ["2"],
    ),
    "escaped reference": (
        {"$defs": {"a/b c~": {"const": 1}}, "$ref": "#/$defs/a~1b%20c~0"}, ["1"], ["2"],
    ),
    "reference to a reference": (
        {"definitions": {"a": {"$ref": "#/definitions/b"}, "b": {"const": 1}},
         "$ref": "#/definitions/a"},
        ["1"],
        ["2"],
    ),
    "dynamic and recursive references": (
        {"$dynamicAnchor": "node", "type": ["array", "null"], "items": {"$dynamicRef": "#node"}},
        ["[null,[]]"],
        ["[1]"],
    ),
    "annotations": (
        {
            "$schema": "https://json-schema.org/draft/2020-12/schema", "$comment": "x",
            "title": "A", "description": "B", "default": 1, "examples": [1], "deprecated": True,
            "readOnly": True, "writeOnly": False, "discriminator": {"propertyName": "kind"},
            "x-order": 3, "nullable": True, "contentEncoding": "base64", "$recursiveAnchor": True,
            "xml": {"name": "a"}, "externalDocs": {"url": "x"}, "type": "integer",
        },
        ["1"],
        ["null"],
    ),
    "null is absent": (
        {"type": "string", "maxLength": None, "enum": None, "description": None}, ['"x"'], ["1"],
    ),
    "keys that must be escaped": (
        {**OBJECT, "properties": {'q"\n': {"const": 1}}, "required": ['q"\n']},
        ['{"q\\"\\n":1}'],
        ["{}"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_keyword_is_enforced(name: str) -> None:
    schema, valid, invalid = CASES[name]
    if not valid:
        with pytest.raises(SchemaError, match="No JSON value can match"):
            schema_rules(schema)
        return
    constraint = compile_schema(schema)
    assert [text for text in valid if not accepts(constraint, text)] == []
    assert [text for text in invalid if accepts(constraint, text)] == []


REJECTED: dict[str, tuple[Any, str]] = {
    "type": ({"type": "nothing"}, ".type"),
    "types": ({"type": ["string", 5]}, ".type"),
    "minimum": ({"properties": {"a.b": {"minimum": "x"}}}, '.properties["a.b"].minimum'),
    "exclusiveMinimum": ({"exclusiveMinimum": "5"}, ".exclusiveMinimum"),
    "minLength": ({"minLength": -1}, ".minLength"),
    "huge minLength": ({"minLength": 10**6}, ".minLength"),
    "multipleOf": ({"multipleOf": 0}, ".multipleOf"),
    "required": ({"required": "a"}, ".required"),
    "enum": ({"enum": "a"}, ".enum"),
    "anyOf": ({"anyOf": []}, ".anyOf"),
    "allOf": ({"allOf": {"type": "string"}}, ".allOf"),
    "properties": ({"properties": []}, ".properties"),
    "schema": ({"properties": {"a": 5}}, ".properties.a"),
    "pattern": ({"items": {"pattern": "("}, "type": "array"}, ".items.pattern"),
    "reference to nothing": ({"$ref": "#/nowhere"}, ".$ref"),
    "remote reference": ({"$ref": "http://127.0.0.1:9/schema"}, ".$ref"),
    "reference to a file": ({"anyOf": [{"$ref": "file:///etc/passwd"}]}, ".anyOf[0].$ref"),
    "uniqueItems": ({"uniqueItems": "yes"}, ".uniqueItems"),
    "no integer in range": ({"type": "integer", "minimum": 5, "maximum": 3}, ""),
    "no value": ({"enum": []}, ""),
    "not anything": ({"not": {}}, ""),
    "required and forbidden": ({**OBJECT, "required": ["a"], "properties": {"a": False}}, ""),
    "endless object": (
        {"$defs": {"n": {**OBJECT, "properties": {"n": {"$ref": "#/$defs/n"}}, "required": ["n"]}},
         "$ref": "#/$defs/n"},
        "",
    ),
    "more unique items than values": (
        {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True, "minItems": 3}, "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("is_strict", [True, False])
@pytest.mark.parametrize("name", REJECTED)
def test_malformed_schema_is_rejected_with_the_keyword_path(name: str, is_strict: bool) -> None:
    schema, path = REJECTED[name]
    with pytest.raises(SchemaError) as caught:
        schema_rules(schema, is_strict=is_strict)
    assert not isinstance(caught.value, UnsupportedKeyword)
    assert caught.value.path == path


# Each case has a schema, the path of the unenforceable keyword, and a text that matches all other
# keywords.
UNENFORCEABLE: dict[str, tuple[Any, str, str]] = {
    "uniqueItems": (
        {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
        ".uniqueItems",
        '["a","a"]',
    ),
    "pattern": (
        {**OBJECT, "properties": {"a.b": {"type": "string", "pattern": r"\bx"}}},
        '.properties["a.b"].pattern',
        '{"a.b":"y"}',
    ),
    "backreference": ({"type": "string", "pattern": r"(a)\1"}, ".pattern", '"y"'),
    "patternProperties": (
        {**OBJECT, "patternProperties": {r"\ba": {"const": 1}}},
        '.patternProperties["\\\\ba"]',
        '{"a":2}',
    ),
    "multipleOf": ({"type": "integer", "multipleOf": 999_983}, ".multipleOf", "1"),
    "minProperties": ({**OBJECT, "minProperties": 3}, ".minProperties", '{"a":1,"b":1,"a":2}'),
    "contains twice": (
        {"type": "array", "allOf": [{"contains": {"const": 1}}, {"contains": {"const": 2}}]},
        ".allOf[1].contains",
        "[1]",
    ),
    "not of an unenforceable negation": (
        {"type": "array", "not": {"uniqueItems": True}}, ".not", "[1]",
    ),
    "if of an unenforceable negation": (
        {"type": "array", "if": {"uniqueItems": True}, "then": {"maxItems": 1}}, ".if", "[]",
    ),
    "required of draft 3": (
        {**OBJECT, "properties": {"a": {"required": True}}}, ".properties.a.required", "{}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNENFORCEABLE)
def test_unenforceable_keyword_is_reported_or_rejected_if_strict(name: str) -> None:
    schema, path, text = UNENFORCEABLE[name]
    lenient = schema_rules(schema, is_strict=False)
    assert path in [each.path for each in lenient.unenforced]
    assert accepts(compile_schema(schema, is_strict=False), text)
    with pytest.raises(UnsupportedKeyword) as caught:
        schema_rules(schema)
    assert caught.value.path == path


ARGUMENTS: dict[str, tuple[Any, list[str], list[str]]] = {
    "nothing": ({}, ["{}"], ['{"a":1}', "1"]),
    "no properties": (OBJECT, ["{}"], ['{"PARAMETER":"VALUE"}']),
    "empty properties": ({**OBJECT, "properties": {}}, ["{}"], ['{"a":1}']),
    "free": ({**OBJECT, "additionalProperties": True}, ["{}", '{"a":1}'], ["1"]),
    "declared": ({"properties": {"a": {"type": "integer"}}}, ["{}", '{"a":1}'], ['{"b":1}']),
    "reference": (
        {"$defs": {"p": {**OBJECT, "properties": {"a": {}}, "required": ["a"]}},
         "$ref": "#/$defs/p"},
        ['{"a":1}'],
        ["{}", '{"a":1,"b":1}'],
    ),
    "allOf": (
        {"allOf": [{**OBJECT, "properties": {"a": {}}}, {"properties": {"b": {}}}]},
        ['{"a":1,"b":1}', "{}"],
        ['{"c":1}'],
    ),
    "anyOf": (
        {"anyOf": [{"properties": {"a": {}}, "required": ["a"]}, {"required": ["b"]}]},
        ['{"a":1}', '{"b":1}'],
        ["{}", '{"c":1}', "1", '{"a":1,"c":1}'],
    ),
    "inner objects stay open": (
        {"properties": {"a": OBJECT}}, ['{"a":{"x":1}}'], ['{"b":{}}'],
    ),
    "patternProperties": (
        {**OBJECT, "patternProperties": {"^x": {}}, "additionalProperties": False},
        ['{"xa":1}'],
        ['{"a":1}'],
    ),
}  # fmt: skip


@pytest.mark.parametrize("is_strict", [True, False])
@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_have_only_declared_properties(name: str, is_strict: bool) -> None:
    schema, valid, invalid = ARGUMENTS[name]
    constraint = compile_schema(schema, is_strict=is_strict, is_arguments=True)
    assert [text for text in valid if not accepts(constraint, text)] == []
    assert [text for text in invalid if accepts(constraint, text)] == []


PRETTY = '{\n  "a": [\n    1,\n    2\n  ],\n  "b": {}\n}'


@pytest.mark.parametrize(
    ("text", "is_flexible", "is_compact"),
    [
        ('{"a":[1,2],"b":{}}', True, True),
        ('{"a": [1, 2], "b": {}}', True, False),
        (PRETTY, True, False),
        (PRETTY.replace("  ", "\t"), True, False),
        (PRETTY.replace('"a":', '"a" :'), True, False),
        ('{"a":  [1,2],"b":{}}', False, False),
        ('{"a":\n[1,2],"b":{}}', False, False),
        ('{"a":[1,\n\n2],"b":{}}', False, False),
        ('{"a":[1,2],"b":{}}\n', False, False),
        ('{"a":[1,2] ,"b":{}}', False, False),
        (" " * 40 + '{"a":[1,2],"b":{}}', False, False),
        ('\n{"a":[1,2],"b":{}}', True, False),
        ('\n\n{"a":[1,2],"b":{}}', False, False),
    ],
)
def test_white_space_is_limited(text: str, is_flexible: bool, is_compact: bool) -> None:
    assert accepts(compile_schema(OBJECT), text) == is_flexible
    assert accepts(compile_schema(OBJECT, layout=JsonLayout.COMPACT), text) == is_compact


def tagged(kind: str) -> dict[str, Any]:
    return {"if": {"properties": {"k": {"const": kind}}}, "then": {"required": [f"{kind}_x"]}}


@pytest.mark.slow
def test_many_conditions_on_a_tag_are_enforced() -> None:
    kinds = [f"v{i}" for i in range(40)]
    constraint = compile_schema(
        {
            **OBJECT,
            "properties": {"k": {"enum": kinds}},
            "required": ["k"],
            "allOf": [tagged(kind) for kind in kinds],
        }
    )
    assert accepts(constraint, '{"k":"v7","v7_x":1}')
    assert not accepts(constraint, '{"k":"v7","v8_x":1}')
    assert not accepts(constraint, '{"k":"v7"}')


TOO_MANY: dict[str, tuple[Any, str]] = {
    "anyOf": (
        {"allOf": [{"anyOf": [{"required": [f"a{i}_{j}"]} for j in range(9)]} for i in range(9)]},
        ".allOf[6]",
    ),
    "oneOf": (
        {
            "oneOf": [
                {
                    **OBJECT,
                    "properties": {f"a{i}": {"type": "string"}, "x": {"type": "integer"}},
                    "required": [f"a{i}"],
                }
                for i in range(30)
            ]
        },
        ".oneOf",
    ),
    "oneOf that is long": (
        {"oneOf": [{"type": "string", "pattern": f"a{i}"} for i in range(33)]},
        ".oneOf",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TOO_MANY)
def test_too_many_combined_alternatives_are_reported_or_rejected_if_strict(name: str) -> None:
    schema, path = TOO_MANY[name]
    assert path in [each.path for each in schema_rules(schema, is_strict=False).unenforced]
    compile_schema(schema, is_strict=False)
    with pytest.raises(UnsupportedKeyword) as caught:
        schema_rules(schema)
    assert caught.value.path == path


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"type": "object", "properties": {f"p{i}": {} for i in range(1_001)}}, ".properties"),
        ({"type": "string", "allOf": [{"pattern": f"a{i}.*b"} for i in range(40)]}, ""),
        (
            {
                "$defs": {f"n{i}": {"enum": [{"a": j} for j in range(300)]} for i in range(150)},
                "prefixItems": [{"$ref": f"#/$defs/n{i}"} for i in range(150)],
            },
            None,
        ),
    ],
)
def test_too_large_schema_is_rejected(schema: Any, path: str | None) -> None:
    with pytest.raises(SchemaError) as caught:
        schema_rules(schema, is_strict=False)
    assert path is None or caught.value.path == path


def test_properties_follow_the_order_of_the_schema() -> None:
    constraint = compile_schema(
        {
            "allOf": [{"properties": {"c": {}}}, {"properties": {"d": {}}}],
            "type": "object",
            "properties": {"b": {}, "a": {}},
            "required": ["a", "b", "c", "d"],
        }
    )
    assert accepts(constraint, '{"b":1,"a":1,"c":1,"d":1}')
    assert not accepts(constraint, '{"a":1,"b":1,"c":1,"d":1}')


def test_long_chain_of_references_is_followed() -> None:
    names = {f"n{i}": {"type": "array", "items": {"$ref": f"#/$defs/n{i + 1}"}} for i in range(900)}
    constraint = compile_schema({"$defs": names | {"n900": {"const": 1}}, "$ref": "#/$defs/n0"})
    assert accepts(constraint, "[" * 50 + "]" * 50)
