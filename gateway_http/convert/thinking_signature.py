"""The signatures of reasoning in Anthropic's Messages API.

A signature identifies the text that it was returned with. If the text is not returned, the
signature contains it instead, compressed: so the client can send the reasoning back without having
read it. Nothing is secret: all of it is the client's own.
"""

import base64
import hashlib
import zlib

_DIGEST = "chatrpc-sha256:"
_TEXT = "chatrpc-text:"
# A longer text could not have been returned: no context has this many characters.
_MAX_CHARS = 4 << 20


class InvalidSignature(ValueError):
    """A signature of this server does not belong to the text. The message is the reason."""


def signature(text: str) -> str:
    """Return the signature of a text that is returned with it."""
    return _DIGEST + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def signature_with_text(text: str) -> str:
    """Return the signature of a text that is not returned. It contains the text."""
    return _TEXT + base64.b64encode(zlib.compress(text.encode())).decode()


def signed_text(text: str, sent: str) -> str:
    """Return the text of a block of reasoning.

    Args:
        text: The block's text; "" if it was not returned.
        sent: The block's signature. Those of other servers are not checked.

    Raises:
        InvalidSignature: The signature is of another text, or damaged.
    """
    if sent.startswith(_TEXT):
        return _contained(sent.removeprefix(_TEXT))
    if sent.startswith(_DIGEST) and sent != signature(text):
        raise InvalidSignature("the text has been changed")
    return text


def _contained(encoded: str) -> str:
    inflater = zlib.decompressobj()
    try:
        content = inflater.decompress(base64.b64decode(encoded, validate=True), _MAX_CHARS)
        if inflater.eof:
            return content.decode()
    except (ValueError, zlib.error):
        pass
    raise InvalidSignature("the signature is damaged")
