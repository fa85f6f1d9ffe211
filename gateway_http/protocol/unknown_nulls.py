"""Decoding of JSON in which unknown keys with the value null are ignored.

Clients send back messages of other servers, with the fields of those servers set to null.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import TypeVar

import msgspec
from msgspec import inspect

_Body = TypeVar("_Body")

_Object = dict[str, msgspec.Raw]
_decode_object = msgspec.json.Decoder(_Object).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_encode = msgspec.json.encode


def null_tolerant_decoder(kind: type[_Body]) -> Callable[[bytes], _Body]:
    """Return a function that decodes JSON as `kind`. It raises the errors of msgspec's decoder."""
    decode = msgspec.json.Decoder(kind).decode

    def decode_tolerantly(content: bytes) -> _Body:
        try:
            return decode(content)
        except msgspec.ValidationError as error:
            if "unknown field" not in str(error):
                raise
        return decode(without_unknown_nulls(content, kind))

    return decode_tolerantly


def without_unknown_nulls(content: bytes, kind: type) -> bytes:
    """Return a JSON text without unknown keys whose values are null.

    Values of no declared type, such as JSON schemas, are unchanged.
    """
    return bytes(_without(msgspec.Raw(content), _type_of(kind)))


@cache
def _type_of(kind: type) -> inspect.Type:
    return inspect.type_info(kind)


def _without(value: msgspec.Raw, kind: inspect.Type) -> msgspec.Raw:
    first = bytes(value).lstrip()[:1]
    if first == b"[":
        items = _item_type(kind)
        if items is not None:
            return msgspec.Raw(_encode([_without(item, items) for item in _decode_list(value)]))
    elif first == b"{":
        fields = _decode_object(value)
        struct = _struct_of(kind, fields)
        if struct is not None:
            return msgspec.Raw(_encode(_known(fields, struct)))
    return value


def _known(fields: _Object, struct: inspect.StructType) -> _Object:
    types = {field.encode_name: field.type for field in struct.fields}
    return {
        name: _without(value, types[name]) if name in types else value
        for name, value in fields.items()
        if name in types or name == struct.tag_field or bytes(value) != b"null"
    }


def _item_type(kind: inspect.Type) -> inspect.Type | None:
    for one in _alternatives(kind):
        if isinstance(one, inspect.ListType):
            return one.item_type
    return None


def _struct_of(kind: inspect.Type, fields: Mapping[str, msgspec.Raw]) -> inspect.StructType | None:
    """Return the struct type of an object: among several, the one that its tag names."""
    structs = [one for one in _alternatives(kind) if isinstance(one, inspect.StructType)]
    for struct in structs:
        tag = struct.tag_field
        if tag is None or (tag in fields and bytes(fields[tag]) == _encode(struct.tag)):
            return struct
    return None


def _alternatives(kind: inspect.Type) -> tuple[inspect.Type, ...]:
    """Return the types that a value may have."""
    if isinstance(kind, inspect.UnionType):
        return tuple(one for each in kind.types for one in _alternatives(each))
    if isinstance(kind, inspect.Metadata):
        return _alternatives(kind.type)
    return (kind,)
