import json

from starlette.types import Message

from gateway_http.http import sse
from gateway_http.protocol.error import ErrorObject


def test_event_is_one_line_whatever_it_contains() -> None:
    event = sse.event(ErrorObject("a\nb\n\ndata: c", "t", None, None))
    assert event.startswith(b'data: {"message":"a\\nb')
    assert event.count(b"\n") == 2


def test_event_is_one_line_to_pythons_splitlines() -> None:
    """`httpx.Response.iter_lines` splits lines at these characters, for example."""
    line_ends = "".join(c for c in map(chr, range(0x3000)) if len(f"a{c}b".splitlines()) == 2)
    assert {"\u0085", "\u2028", "\u2029", "\x0b", "\x1c"} <= set(line_ends)
    message = f"é{line_ends}中"
    event = sse.event(ErrorObject(message, "t", None, None)).decode()
    assert event.splitlines() == [event.removesuffix("\n\n"), ""]
    assert json.loads(event.removeprefix("data: "))["message"] == message


async def test_head_goes_out_with_the_first_event() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    stream = sse.EventStream(send)
    assert sent == []
    await stream.write(sse.PING)
    assert stream.is_open
    await stream.close()
    assert [message["type"].rpartition(".")[2] for message in sent] == ["start", "body", "body"]
    assert sent[-1]["body"] == b"data: [DONE]\n\n"
    assert not sent[-1]["more_body"]
