"""JSON that is passed on as it was sent.

A number in it may be more than a double holds, and the order of its keys may matter.
"""

from typing import Annotated

from msgspec import Meta, Raw

# Absent is `Raw()`, the empty one, which `field(default_factory=Raw)` makes.
RawObject = Annotated[Raw, Meta(extra_json_schema={"type": "object"})]
RawObjectOrText = Annotated[Raw, Meta(extra_json_schema={"type": ["object", "string"]})]
