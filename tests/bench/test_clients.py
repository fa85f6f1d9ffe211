"""The clients, run against the fake service over gRPC and the real gateway in front of it."""

import asyncio

import pytest

from bench import loads
from bench.client_engine import EngineClient
from bench.client_grpc import GrpcClient
from bench.client_http import HttpClient
from bench.loadgen import exchange
from bench.request import Client, Record, Request, Transcript, ask
from service.domain.engine import TokenOutput
from tests.fakes.chat_service import MODEL, PROMPT_TOKENS, Admit, Delta, Finish
from tests.fakes.chat_service import FakeService as Service
from tests.fakes.engine import FakeEngine
from tests.fakes.tokenizer import ByteTokenizer
from tests.support.gateway import serving

# The fake responds with two tokens, `Hello world`, by default.
ASK = ask("Hi", 2)


async def answered(client: Client, request: Request = ASK) -> Record:
    await exchange(client, transcript := Transcript(request))
    await client.close()
    return client.read(transcript)


async def test_client_over_grpc_records_the_response() -> None:
    async with Service() as service:
        record = await answered(GrpcClient(service.target, MODEL))
    assert record.fault is None
    assert record.text == "Hello world"
    assert (record.num_prompt_tokens, record.num_output_tokens) == (PROMPT_TOKENS, 2)
    assert record.due_s < record.arrivals_s[0] <= record.arrivals_s[1]
    [call] = service.calls
    assert call.params.sampling.ignore_eos
    assert call.params.sampling.temperature == 0
    assert call.params.sampling.max_completion_tokens == 2


async def test_client_over_http_records_the_response() -> None:
    async with Service() as service, serving(upstream=service.target) as url:
        record = await answered(HttpClient(f"{url}/v1", MODEL))
    assert record.fault is None
    assert record.text == "Hello world"
    assert (record.num_prompt_tokens, record.num_output_tokens) == (PROMPT_TOKENS, 2)
    [call] = service.calls
    assert call.params.sampling.ignore_eos
    assert call.params.sampling.max_completion_tokens == 2


async def test_delta_of_several_tokens_is_one_arrival() -> None:
    async with Service(script=[Admit(), Delta("a b c", num_tokens=3), Finish()]) as service:
        record = await answered(GrpcClient(service.target, MODEL), ask("Hi", 3))
    assert record.fault is None
    assert len(record.arrivals_s) == 1


async def test_conversation_is_sent_whole_over_both_wires() -> None:
    request = ask("one", 2).with_turn("two", "three")
    async with Service() as service, serving(upstream=service.target) as url:
        await answered(GrpcClient(service.target, MODEL), request)
        await answered(HttpClient(f"{url}/v1", MODEL), request)
    for call in service.calls:
        assert [message.content[0].text for message in call.params.messages] == [
            "one",
            "two",
            "three",
        ]


async def test_error_is_the_fault_of_the_record() -> None:
    async with Service() as service, serving(upstream=service.target) as url:
        missing = await answered(HttpClient(f"{url}/v1/nowhere", MODEL))
        await service.stop()
        gone = await answered(GrpcClient(service.target, MODEL))
    refused = await answered(HttpClient(f"{url}/v1", MODEL))
    assert missing.fault is not None
    assert missing.fault.startswith("HTTP 404")
    assert gone.fault is not None
    assert gone.fault.startswith("UNAVAILABLE")
    assert refused.fault is not None
    assert refused.fault.startswith("ClientConnectorError")


async def test_event_that_is_not_json_is_a_fault() -> None:
    client = HttpClient("http://127.0.0.1:1/v1", MODEL)
    transcript = Transcript(ASK, pieces=[(1.0, b"data: {\n\n")])
    await client.close()
    assert "malformed event" in str(client.read(transcript).fault)


async def test_error_in_a_stream_is_a_fault() -> None:
    client = HttpClient("http://127.0.0.1:1/v1", MODEL)
    transcript = Transcript(ASK, pieces=[(1.0, b'data: {"error": {"message": "no"}}\n\n')])
    await client.close()
    assert client.read(transcript).fault == '{"message": "no"}'


async def test_engine_client_records_the_response() -> None:
    engine = FakeEngine()
    engine.script = [TokenOutput((1, 2)), TokenOutput((3,))]
    engine.answer("abc")
    record = await answered(EngineClient(engine, ByteTokenizer()), ask("Hi", 3))
    assert record.fault is None
    assert len(record.arrivals_s) == 3
    assert bytes(engine.requests[0].prompt_token_ids) == b"<user>Hi<assistant>"
    assert record.num_prompt_tokens == len(b"<user>Hi<assistant>")


@pytest.mark.parametrize(
    "load",
    [
        loads.Closed("closed", "", 3, 7, 5, 2),
        loads.Open("open", "", 500.0, 7, 5, 2),
        loads.Turns("turns", "", 2, 5, 2),
        loads.Edit("edit", "", 2, 20, 2),
    ],
    ids=lambda load: load.name,
)
async def test_each_load_runs_over_both_wires(load: loads.Load) -> None:
    done: list[None] = []
    async with Service() as service, serving(upstream=service.target) as url:
        for client in (GrpcClient(service.target, MODEL), HttpClient(f"{url}/v1", MODEL)):
            outcome = await load.run(client, 1, lambda: done.append(None))
            await client.close()
            assert outcome.fault is None
            assert outcome.figures["output_tok_s"] > 0
    assert len(done) == len(service.calls) == 2 * load.num_requests
    half = load.num_requests
    texts = [call.params.messages[-1].content[0].text for call in service.calls]
    assert sorted(texts[:half]) == sorted(texts[half:]), "every server gets the same prompts"
    assert len(set(texts)) == half, "and no prompt comes twice"


async def test_stall_load_sends_its_long_prompt_during_the_streams() -> None:
    words = [Delta("a ")] * 30
    load = loads.Stall("stall", "", 2, 30, 5, 50)
    async with Service(script=[Admit(), *words, Finish()]) as service:
        client = GrpcClient(service.target, MODEL)
        outcome = await load.run(client, 1, lambda: None)
        await client.close()
    # The fake generates 30 tokens for the long prompt instead of the 8 that are requested.
    assert outcome.fault == "1 of 3 requests: 30 tokens instead of 8"
    long = [call.params.messages[0].content[0].text.split() for call in service.calls][-1]
    assert len(long) == 50


async def test_cancelled_load_leaves_no_call() -> None:
    from_service = asyncio.Event()
    async with Service() as service:
        service.script = [Admit(), Delta("a"), *[Delta("b")] * 3]
        task = asyncio.create_task(
            loads.Closed("closed", "", 2, 1000, 5, 2).run(
                client := GrpcClient(service.target, MODEL), 1, from_service.set
            )
        )
        await from_service.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await client.close()
