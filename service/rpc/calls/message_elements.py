"""Counts the elements of a protobuf message by its bytes, before it is parsed.

A message of 8 MiB can have four million empty submessages. Parsing them takes hundreds of megabytes
and keeps the interpreter's lock for seconds. So a check after parsing would be too late.
"""

from contextlib import suppress
from dataclasses import dataclass
from functools import cache

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from service.errors import InvalidField

# 8000 messages of five elements each are far more than conversations have.
MAX_ELEMENTS = 100_000
# The numbers of a packed field are parsed much faster than submessages. So this many bytes of them
# count as one element. Then 128 prompts of 8192 token ids are allowed, and parsing a message takes
# at most about 50 ms.
_PACKED_BYTES_PER_ELEMENT = 32


@dataclass(frozen=True, slots=True)
class _Field:
    """The properties of a message field that are needed to count its elements."""

    name: str
    message_type: Descriptor | None
    is_packed: bool


_UNKNOWN = _Field("", None, is_packed=False)


def check_num_elements(data: bytes, descriptor: Descriptor) -> None:
    """Check that a message and its submessages have at most `MAX_ELEMENTS` fields together.

    32 bytes of a packed field count as one. Bytes that are not a message pass: the parser rejects
    them.

    Raises:
        InvalidField: There are more. The error names the field that exceeds the limit.
    """
    if len(data) < 2 * MAX_ELEMENTS:  # an element has at least two bytes
        return
    num_elements = 0
    pending = [(descriptor, 0, len(data), "")]
    with suppress(IndexError):  # the data is cut off, or is not a message
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


@cache  # one entry for each message type
def _fields(descriptor: Descriptor) -> dict[int, _Field]:
    """Return the fields of a message type by their numbers."""
    return {
        field.number: _Field(
            field.name,
            field.message_type if field.type == FieldDescriptor.TYPE_MESSAGE else None,
            field.is_packed,
        )
        for field in descriptor.fields
    }


def _size(data: bytes, position: int, wire_type: int) -> tuple[int, int]:
    """Return the number of bytes of a field's value, and the position of the first one.

    https://protobuf.dev/programming-guides/encoding/#structure
    """
    match wire_type:
        case 2:
            return _varint(data, position)
        case 0:  # a varint has no size before it, and is read to find its end
            return 0, _varint(data, position)[1]
        case 1:
            return 8, position
        case 5:
            return 4, position
        case _:  # the start and the end of a group have no value
            return 0, position


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Return the number at `position`, of at most ten bytes, and the position after it.

    Raises:
        IndexError: The data ends before the number does.
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
