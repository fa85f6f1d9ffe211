"""Custom tools, whose input is a text, as functions with one string argument.

The argument is called `input`. Models are trained on functions with JSON arguments, and the service
enforces the schema of strict functions. So a format of the input becomes a part of the schema.
"""

import json
import re

import msgspec

from gateway_http.protocol.responses_request import CustomGrammarFormat, CustomTextFormat

_HEAD = re.compile(r'\s*\{\s*"input"\s*:\s*"')
# Characters of a JSON string that are complete. The first half of a pair of surrogates is complete
# with its second half, or if something else follows.
_COMPLETE = re.compile(
    r"""(?:
        [^"\\]
        | \\[^u]
        | \\u(?![dD][89abAB])[0-9a-fA-F]{4}
        | \\u[dD][89abAB][0-9a-fA-F]{2} (?:
            \\u[dD][c-fC-F][0-9a-fA-F]{2}
            | (?= [^\\] | \\[^u] | \\u(?![dD][c-fC-F])[0-9a-fA-F]{4} )
        )
    )*+""",
    re.VERBOSE | re.DOTALL,
)
_SURROGATE = re.compile("[\ud800-\udfff]")


def input_schema(form: CustomTextFormat | CustomGrammarFormat | None) -> str:
    """Return the JSON Schema of the function's arguments.

    Args:
        form: The format of the tool's input; None for any text.
    """
    text: dict[str, str] = {"type": "string"}
    if isinstance(form, CustomGrammarFormat):
        text["pattern"] = f"^(?:{form.definition})$"
    schema = {
        "type": "object",
        "properties": {"input": text},
        "required": ["input"],
        "additionalProperties": False,
    }
    return msgspec.json.encode(schema).decode()


def arguments(text: str) -> str:
    """Return the arguments of a call whose input is `text`."""
    return msgspec.json.encode({"input": text}).decode()


class InputText:
    """Extracts the input of one call from the arguments, which arrive in pieces.

    Arguments of another form, which only a model without enforced schemas can write, are the input
    as they are.
    """

    def __init__(self) -> None:
        self._held = ""  # arguments that are not part of the result yet
        self._has_begun = False
        self._is_over = False

    def push(self, arguments_json: str) -> str:
        """Return the text that a piece of the arguments adds to the input."""
        if self._is_over:
            return ""
        self._held += arguments_json
        if not self._has_begun:
            head = _HEAD.match(self._held)
            if head is None:
                return ""
            self._has_begun = True
            self._held = self._held[head.end() :]
        return self._take()

    def finish(self) -> str:
        """Return the rest of the input at the end of the call."""
        rest, self._held = self._held, ""
        return "" if self._has_begun else rest

    def _take(self) -> str:
        """Return the complete characters of the held text. The text ends at the closing quote."""
        complete = _COMPLETE.match(self._held)
        end = 0 if complete is None else complete.end()
        text, self._held = self._held[:end], self._held[end:]
        if self._held.startswith('"'):
            self._is_over = True
        return _unescaped(text)


def _unescaped(text: str) -> str:
    """Return the text that a JSON string contains, or its source if that is not valid JSON.

    An unpaired surrogate, which no encoding of a response has, becomes U+FFFD.
    """
    try:
        decoded: str = json.loads(f'"{text}"', strict=False)
    except ValueError:
        return text
    return _SURROGATE.sub("\ufffd", decoded)
