"""Counts the elements of a protobuf message by its bytes, before it is parsed.

A message of 8 MiB can hold four million empty submessages. Parsing these takes seconds of the
interpreter's lock and hundreds of megabytes, whatever is checked afterwards.
"""

from contextlib import suppress
from dataclasses import dataclass
from functools import cache

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from service.errors import InvalidField

# 8000 messages of five elements each are far more than conversations have.
MAX_ELEMENTS = 100_000
# Numbers of a packed field are parsed so much faster than submessages. With this, 128 prompts of
# 8192 token ids are allowed, and a message takes at most about 50 ms to parse.
_PACKED_BYTES_PER_ELEMENT = 32


@dataclass(frozen=True, slots=True)
class _Field:
    """The facts of a field that the count needs."""

    name: str
    message_type: Descriptor | None
    is_packed: bool


_UNKNOWN = _Field("", None, is_packed=False)


def check_num_elements(data: bytes, descriptor: Descriptor) -> None:
    """Check that a message has at most `MAX_ELEMENTS` fields, those of its submessages included.

    32 bytes of a packed field count as one. Bytes that are not a message are left to the parser.

    Raises:
        InvalidField: There are more; it names the field in which the last of them was found.
    """
    if len(data) < 2 * MAX_ELEMENTS:  # an element takes two bytes at least
        return
    num_elements = 0
    pending = [(descriptor, 0, len(data), "")]
    with suppress(IndexError):  # it is cut off, or is no message
        while pending:
            kind, position, end, path = pending.pop()
            fields = _fields(kind)
            while position < end:
                tag, position = _varint(data, position)
                size, position = _size(data, position, tag & 7)
                field = fields.get(tag >> 3, _UNKNOWN)
                num_elements += 1
                if field.is_packed:
                    num_elements += size // _PACKED_BYTES_PER_ELEMENT
                if num_elements > MAX_ELEMENTS:
                    raise InvalidField(
                        f"{path}{field.name}".removeprefix("params."),
                        f"A request has at most {MAX_ELEMENTS} elements in all, such as messages, "
                        "parts, tools, calls and token ids.",
                    )
                if field.message_type is not None:
                    start, name = position, f"{path}{field.name}."
                    pending.append((field.message_type, start, start + size, name))
                position += size


@cache  # there are as many as message types
def _fields(descriptor: Descriptor) -> dict[int, _Field]:
    """The fields by their numbers."""
    return {
        field.number: _Field(
            field.name,
            field.message_type if field.type == FieldDescriptor.TYPE_MESSAGE else None,
            field.is_packed,
        )
        for field in descriptor.fields
    }


def _size(data: bytes, position: int, wire_type: int) -> tuple[int, int]:
    """The number of bytes of a field's value, and where these begin.

    https://protobuf.dev/programming-guides/encoding/#structure
    """
    match wire_type:
        case 2:
            return _varint(data, position)
        case 0:  # a varint: its end is where the next field begins
            return 0, _varint(data, position)[1]
        case 1:
            return 8, position
        case 5:
            return 4, position
        case _:  # the start and the end of a group have no value
            return 0, position


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """The number at `position`, and where the next one begins. Raises IndexError if there is none.

    A number has at most ten bytes.
    """
    byte = data[position]
    if byte < 0x80:
        return byte, position + 1
    value = byte & 0x7F
    for i in range(1, 10):
        byte = data[position + i]
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value, position + i + 1
    raise IndexError
