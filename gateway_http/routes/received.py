"""Decodes and converts the bodies of requests for the model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from gateway_http.protocol.error import ApiError, converted_or_error


class ReceivedBody(Protocol):
    """The body of a request for the model."""

    @property
    def model(self) -> str: ...

    def drop_input(self) -> None:
        """Free the model's input after it has been converted."""
        ...


_Body = TypeVar("_Body", bound=ReceivedBody)
_Params = TypeVar("_Params")


@dataclass(frozen=True)
class Received(Generic[_Body, _Params]):
    """A decoded body, and the parameters made from it.

    Attributes:
        body: The body, without the input that no response needs.
        params: The parameters of the RPC, without the model, or the error of their conversion.
        names: The client's names of parameters; see `param_of`.
        num_stored_bytes: The size of the stored conversation that the parameters contain, too.
    """

    body: _Body
    params: _Params | ApiError
    names: Mapping[str, str]
    num_stored_bytes: int = 0

    def params_or_raise(self) -> _Params:
        """Return the parameters, or raise the error of their conversion."""
        if isinstance(self.params, ApiError):
            raise self.params
        return self.params


def decode_and_convert(
    content: bytes,
    decode: Callable[[bytes], _Body],
    convert: Callable[[_Body], _Params],
    names: Callable[[_Body], Mapping[str, str]],
) -> Received[_Body, _Params]:
    """Decode a body, convert it and free its input. Raises ApiError if it cannot be decoded.

    All of this happens in one step. Otherwise large bodies would wait between the steps, and use
    the memory of both forms.
    """
    body = decode(content)
    sent_names = names(body)
    params = converted_or_error(convert, body)
    body.drop_input()
    return Received(body, params, sent_names)
