from starlette.types import Message

from gateway_http import sse
from gateway_http.protocol.error import ErrorObject


def test_event_is_one_line_whatever_it_says() -> None:
    event = sse.event(ErrorObject("a\nb\n\ndata: c", "t", None, None))
    assert event.startswith(b'data: {"message":"a\\nb')
    assert event.count(b"\n") == 2


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
