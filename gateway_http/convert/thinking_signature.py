"""The signatures of reasoning in Anthropic's Messages API.

A signature identifies the text that it was returned with. If the text is not returned, the
signature contains it instead, compressed: so the client can send the reasoning back without having
read it. Nothing is secret: all of it is the client's own. In OpenAI's Responses API, the
`encrypted_content` of reasoning is a signature that contains the text.
"""

import base64
import hashlib
import zlib

_DIGEST = "chatrpc-sha256:"
_TEXT = "chatrpc-text:"
# Longer texts could not have been returned: no context has this many bytes.
_MAX_BYTES = 4 << 20


class InvalidSignature(ValueError):
    """A signature of this server does not belong to the text. The message is the reason."""


def signature(text: str) -> str:
    """Return the signature of a text that is returned with it."""
    return _DIGEST + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def signature_with_text(text: str) -> str:
    """Return the signature of a text that is not returned. It contains the text."""
    return _TEXT + base64.b64encode(zlib.compress(text.encode())).decode()


class SignedTexts:
    """Reads the blocks of reasoning of one request.

    The texts that their signatures contain have `_MAX_BYTES` together at most: a small request
    could expand to gigabytes otherwise.
    """

    def __init__(self) -> None:
        self._num_left = _MAX_BYTES

    def text(self, text: str, sent: str) -> str:
        """Return the text of a block.

        Args:
            text: The block's text; "" if it was not returned.
            sent: The block's signature. Those of other servers are not checked.

        Raises:
            InvalidSignature: The signature is of another text, or damaged, or the texts are too
                large.
        """
        if sent.startswith(_TEXT):
            return self._contained(sent.removeprefix(_TEXT))
        if sent.startswith(_DIGEST) and sent != signature(text):
            raise InvalidSignature("the text has been changed")
        return text

    def _contained(self, encoded: str) -> str:
        inflater = zlib.decompressobj()
        try:
            compressed = base64.b64decode(encoded, validate=True)
            content = inflater.decompress(compressed, self._num_left + 1)  # 0 would be no limit
            if inflater.eof and len(content) <= self._num_left:
                self._num_left -= len(content)
                return content.decode()
        except (ValueError, zlib.error):
            pass
        raise InvalidSignature("the signature is damaged")
