"""Notes beside the fields of the structs, from which descriptions are made.

A field without a note is the proto field of the same name, and has the comment of that field as its
description. A note states only what differs over HTTP. The OpenAPI document and docs/parity.md are
made from the notes and the comments (`gateway_http/openapi/fields.py`).
"""

from typing import Annotated, Any

from msgspec import Meta


def note(text: str) -> Meta:
    """Return a note that follows the comment of the proto field of the same name."""
    return Meta(description=text)


def proto_field(*names: str, note: str = "", description: str = "") -> Meta:
    """Return a note on a field whose proto field has another name.

    Args:
        names: The proto field, such as `SamplingParams.temperature`. Several, if the HTTP field
            stands for all of them, or for each in another message.
        note: Follows the comment of the first proto field.
        description: Replaces the comment.
    """
    extra = {"proto_fields": names, "has_comment": not description}
    return Meta(description=note or description, extra=extra)


def http_only(text: str, *, is_rejected: bool = False) -> Meta:
    """Return a note on a field that is no proto field.

    Args:
        text: The description.
        is_rejected: True if every value except null is rejected. The OpenAPI document leaves the
            field out.
    """
    extra = {"proto_fields": (), "has_comment": False, "is_rejected": is_rejected}
    return Meta(description=text, extra=extra)


Accepted = Annotated[Any, http_only("Accepted, without effect.")]
Rejected = Annotated[Any, http_only("Rejected unless it is null.", is_rejected=True)]
