"""Types of JSON values that are not decoded but passed on as text.

Decoding would lose integers that a double cannot represent.
"""

from typing import Annotated

from msgspec import Meta, Raw

# The value of an absent field is `Raw()`, which is empty: use `field(default_factory=Raw)`.
RawObject = Annotated[Raw, Meta(extra_json_schema={"type": "object"})]
RawObjectOrText = Annotated[Raw, Meta(extra_json_schema={"type": ["object", "string"]})]
RawObjectOrArray = Annotated[Raw, Meta(extra_json_schema={"type": ["object", "array"]})]
