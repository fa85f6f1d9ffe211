"""Random protobuf messages, some of them with random damage.

The random number generator determines them completely.
"""

import copy
import random
import struct
from collections.abc import Callable
from typing import Any, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

_TEXTS = (
    "",
    "fake",
    "tiny",
    "hi",
    "\0",
    "\u202e\ufeff",
    "é" * 300,
    "x" * 5000,
    "<|im_end|>",
    "{{ 7 * 7 }}{% for %}",
    '{"type": "object"}',
    "[a-z]+(",
    "root ::= root",
    "../../etc/passwd",
    "99999999999999999999",
    "\U0001f600" * 9,
)
_INTEGERS = (0, 1, 2, 3, 7, 20, 21, 64, 299, 300, 1000, 2**31 - 1)
_SIGNED = (-1, -2, -(2**31))
_FLOATS = (0.0, 1.0, -1.0, 0.5, 2.0, 2.1, 1e-40, 1e38, float("inf"), float("-inf"), float("nan"))
_SCALARS: dict[int, tuple[Any, ...]] = {
    FieldDescriptor.CPPTYPE_STRING: _TEXTS,
    FieldDescriptor.CPPTYPE_BOOL: (False, True),
    FieldDescriptor.CPPTYPE_FLOAT: _FLOATS,
    FieldDescriptor.CPPTYPE_DOUBLE: _FLOATS,
    FieldDescriptor.CPPTYPE_ENUM: (*range(6), 99, -1),
    FieldDescriptor.CPPTYPE_UINT32: _INTEGERS,
    FieldDescriptor.CPPTYPE_UINT64: _INTEGERS,
}
_MAX_DEPTH = 5


def random_message(choose: random.Random, descriptor: Descriptor, depth: int = 0) -> Message:
    """Return a message of this type with random fields set, most of them to plausible values."""
    message = GetMessageClass(descriptor)()
    share = 0.3 if len(descriptor.fields) > 4 else 0.7
    for field in descriptor.fields:
        if choose.random() > share or (depth >= _MAX_DEPTH and field.message_type):
            continue
        _fill(choose, message, field, depth)
    if "model" in descriptor.fields_by_name and choose.random() < 0.8:
        setattr(message, "model", "tiny")  # noqa: B010  # the static type has no such field
    return message


def _fill(choose: random.Random, message: Any, field: FieldDescriptor, depth: int) -> None:
    values = getattr(message, field.name)
    if field.is_repeated:
        kind = field.message_type
        for _ in range(choose.choice((0, 1, 1, 2, 5))):
            if kind is not None and kind.GetOptions().map_entry:
                key = _scalar(choose, kind.fields_by_name["key"])
                value = kind.fields_by_name["value"]
                if value.message_type is None:
                    values[key] = _scalar(choose, value)
            elif kind is not None:
                values.append(random_message(choose, kind, depth + 1))
            else:
                values.append(_scalar(choose, field))
    elif field.message_type is not None:
        values.CopyFrom(random_message(choose, field.message_type, depth + 1))
    else:
        setattr(message, field.name, _scalar(choose, field))


def _scalar(choose: random.Random, field: FieldDescriptor) -> Any:
    if field.type == FieldDescriptor.TYPE_BYTES:
        return choose.randbytes(choose.randrange(20))
    return choose.choice(_SCALARS.get(field.cpp_type, _INTEGERS + _SIGNED))


def random_case(choose: random.Random, sensible: Message) -> bytes:
    """Return a request as bytes: the sensible one with changes, or a random one, maybe damaged."""
    if choose.random() < 0.5:
        message = _altered(choose, sensible)
    else:
        message = random_message(choose, cast("Descriptor", sensible.DESCRIPTOR))
    return choose.choice(_DAMAGES)(choose, message.SerializeToString())


def _altered(choose: random.Random, sensible: Message) -> Message:
    """Return a copy in which one to three fields, nested ones too, have random values."""
    message = copy.deepcopy(sensible)
    for _ in range(choose.randrange(1, 4)):
        within: Any = message
        while within.DESCRIPTOR.fields:
            field = choose.choice(within.DESCRIPTOR.fields)
            nested = field.message_type is not None and not field.is_repeated
            if not nested or choose.random() < 0.1:
                _fill(choose, within, field, _MAX_DEPTH - 2)
                break
            within = getattr(within, field.name)
    return message


def _none(_: random.Random, valid: bytes) -> bytes:
    return valid


def _cut(choose: random.Random, valid: bytes) -> bytes:
    return valid[: choose.randrange(len(valid) + 1)]


def _flip(choose: random.Random, valid: bytes) -> bytes:
    damaged = bytearray(valid or b"\0")
    for _ in range(choose.randrange(1, 8)):
        damaged[choose.randrange(len(damaged))] ^= 1 << choose.randrange(8)
    return bytes(damaged)


def _insert(choose: random.Random, valid: bytes) -> bytes:
    place = choose.randrange(len(valid) + 1)
    return valid[:place] + choose.randbytes(choose.randrange(1, 30)) + valid[place:]


def _twice(choose: random.Random, valid: bytes) -> bytes:
    """Repeat some fields, which protobuf merges."""
    return valid * choose.randrange(2, 40)


def _noise(choose: random.Random, _: bytes) -> bytes:
    return choose.randbytes(choose.choice((1, 3, 10, 100, 5000)))


def _huge_varint(choose: random.Random, valid: bytes) -> bytes:
    """Add a varint that is too long, or a length without its bytes."""
    tag = bytes([choose.randrange(1, 16) << 3 | choose.choice((0, 2))])
    return valid + tag + b"\xff" * choose.choice((4, 9, 10, 200)) + choose.choice((b"", b"\x01"))


def _nested(choose: random.Random, valid: bytes) -> bytes:
    """Add deeply nested messages or groups."""
    number = choose.randrange(1, 16)
    depth = choose.choice((50, 101, 1000, 5000))
    if choose.random() < 0.5:
        return valid + bytes([number << 3 | 3]) * depth + bytes([number << 3 | 4]) * depth
    nested = b""
    for _ in range(depth):
        nested = bytes([number << 3 | 2]) + _varint(len(nested)) + nested
    return valid + nested


def _wrong_types(choose: random.Random, valid: bytes) -> bytes:
    """Add field numbers, known and unknown ones, with random wire types."""
    out = bytearray(valid)
    for _ in range(choose.randrange(1, 10)):
        number, wire_type = choose.randrange(1, 60), choose.randrange(8)
        content = choose.choice((b"", b"\x01", b"\x05hello", struct.pack("<d", 1.5), b"\xff" * 8))
        out += _varint(number << 3 | wire_type) + content
    return bytes(out)


def _unknown_fields(choose: random.Random, valid: bytes) -> bytes:
    content = choose.randbytes(choose.randrange(2000))
    number = choose.choice((500, 19_000, 2**29 - 1))
    return valid + _varint(number << 3 | 2) + _varint(len(content)) + content


def _bad_text(choose: random.Random, valid: bytes) -> bytes:
    """Replace texts by bytes that are not UTF-8."""
    return valid.replace(choose.choice((b"tiny", b"hi", b"x", b"i")), b"\xff\xfe", 3)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


_DAMAGES: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    _none,
    _none,
    _none,
    _cut,
    _flip,
    _insert,
    _twice,
    _noise,
    _huge_varint,
    _nested,
    _wrong_types,
    _unknown_fields,
    _bad_text,
)
