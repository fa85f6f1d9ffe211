import asyncio
import json

import pytest
from starlette.types import Message

from gateway_http.http import sse
from gateway_http.protocol.error import ErrorObject
from tests.fakes.wait import until


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

    async with sse.EventStream(send, ping_interval_s=600) as stream:
        assert sent == []
        await stream.ping()
        assert stream.is_open
        await stream.close()
    assert [message["type"].rpartition(".")[2] for message in sent] == ["start", "body", "body"]
    assert [message["body"] for message in sent[1:]] == [b": ping\n\n", b"data: [DONE]\n\n"]
    assert not sent[-1]["more_body"]


async def test_idle_stream_sends_comments_after_its_head_until_its_end() -> None:
    sent: list[bytes] = []

    async def send(message: Message) -> None:
        sent.append(message.get("body", b""))

    async with sse.EventStream(send, ping_interval_s=0.001) as stream:
        await asyncio.sleep(0.01)
        assert sent == []
        await stream.write(b"data: 1\n\n")
        await until(lambda: len(sent) >= 4)
        await stream.close()
        num_sent = len(sent)
        await asyncio.sleep(0.01)
    assert sent[:2] == [b"", b"data: 1\n\n"]
    assert set(sent[2:-1]) == {b": ping\n\n"}
    assert sent[-1] == b"data: [DONE]\n\n"
    assert len(sent) == num_sent


async def test_busy_stream_sends_no_comment() -> None:
    sent: list[bytes] = []

    async def send(message: Message) -> None:
        sent.append(message.get("body", b""))

    async with sse.EventStream(send, ping_interval_s=600) as stream:
        for _ in range(3):
            await stream.write(b"data: 1\n\n")
    assert sent == [b"", *[b"data: 1\n\n"] * 3]


async def test_stream_that_is_left_sends_no_more_comments() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    with pytest.raises(ZeroDivisionError):
        async with sse.EventStream(send, ping_interval_s=0.001) as stream:
            await stream.write(b"data: 1\n\n")
            raise ZeroDivisionError
    num_sent = len(sent)
    await asyncio.sleep(0.01)
    assert len(sent) == num_sent
