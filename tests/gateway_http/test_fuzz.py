"""The gateway always responds to random and hostile JSON, and never with a 5xx."""

import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway_http.protocol import completion, embeddings, request
from gateway_http.protocol.completion import CompletionRequest
from gateway_http.protocol.decode import decoder
from gateway_http.protocol.embeddings import EmbeddingsRequest
from gateway_http.protocol.error import ErrorObject, InvalidRequest
from gateway_http.protocol.request import ChatCompletionRequest
from gateway_http.protocol.tokens import DetokenizeRequest, TokenizeRequest
from tests.support.gateway import checking_service, serving

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool"])},
        optional={
            "content": st.text() | anything,
            "tool_calls": anything,
            "name": st.text(),
            "refusal": anything,
        },
    ),
    max_size=3,
)
field = st.sampled_from(ChatCompletionRequest.__struct_fields__) | st.text()
bodies = st.builds(
    lambda required, rest: rest | required,
    st.fixed_dictionaries({"model": st.text() | anything, "messages": messages | anything}),
    st.dictionaries(field, anything, max_size=4),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=bodies | anything, ascii_only=st.booleans())
async def test_no_body_is_a_server_error(
    http: httpx.AsyncClient, body: Any, ascii_only: bool
) -> None:
    content = json.dumps(body, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    answer = await http.post(
        "/v1/chat/completions", content=content, headers={"content-type": "application/json"}
    )
    assert answer.status_code < 500
    if answer.status_code != 200:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def wrapped(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


HOSTILE: dict[str, Any] = {
    "boolean": True,
    "negative": -1,
    "huge": 2**70,
    "fraction": 1.5,
    "beyond_floats": 1e300,
    "empty": "",
    "control": "\x00\x1b",
    "long": "x" * 100_000,
    "array": [],
    "long_array": [0] * 20_000,
    "mixed_array": [1, "a", None, {}],
    "object": {},
    "keys": {"-1": 1, "a": None, "": 2},
    "many_keys": {str(i): 1 for i in range(5000)},
    "deep_array": nested(60),
    "deep_object": wrapped(60),
}
HI = {"role": "user", "content": "Hi"}
UNSUPPORTED = {*request.UNSUPPORTED, *completion.UNSUPPORTED, *embeddings.UNSUPPORTED} - {
    "echo",
    "add_special_tokens",
    "truncate_prompt_tokens",
    "priority",
    "messages",
}
JSON = {"content-type": "application/json"}
BODIES: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "/v1/chat/completions": (ChatCompletionRequest, {"model": "fake", "messages": [HI]}),
    "/v1/completions": (CompletionRequest, {"model": "fake", "prompt": "Hi"}),
    "/v1/embeddings": (EmbeddingsRequest, {"model": "fake", "input": "Hi"}),
    "/tokenize": (TokenizeRequest, {"model": "fake", "prompt": "Hi"}),
    "/detokenize": (DetokenizeRequest, {"model": "fake", "tokens": [1]}),
}


@pytest.fixture
async def checked() -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of a gateway in front of a service that checks its requests."""
    async with (
        checking_service() as target,
        serving(upstream=target) as url,
        httpx.AsyncClient(base_url=url, timeout=60, verify=False) as client,  # noqa: S501
    ):
        yield client


@pytest.mark.parametrize("path", BODIES)
async def test_hostile_value_is_rejected_by_the_name_of_its_field(
    checked: httpx.AsyncClient, path: str
) -> None:
    kind, plain = BODIES[path]
    decode = decoder(kind)
    num_refused = 0
    for name, label in itertools.product(kind.__struct_fields__, HOSTILE):
        if name in UNSUPPORTED and label != "empty":  # all values of these are rejected
            continue
        value = HOSTILE[label]
        body = json.dumps(plain | {name: value}).encode()
        status = 400
        try:
            decode(body)  # most bodies are rejected here and need not be sent
        except InvalidRequest as refused:
            error = refused.body.error
        else:
            answer = await checked.post(path, content=body, headers=JSON)
            if answer.status_code == 200:
                continue
            status, error = answer.status_code, ErrorObject(**answer.json()["error"])
        num_refused += 1
        case = (name, label, status, error)
        assert status in {400, 404}, case
        assert (error.param or "").split(".")[0].split("[")[0] == name, case
        assert len(error.message) < 1000, case
    assert num_refused > len(HOSTILE)


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("depth", [500, 100_000])
async def test_unbounded_nesting_is_rejected(
    checked: httpx.AsyncClient, path: str, depth: int
) -> None:
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        for name in (*BODIES[path][1], "metadata", "chat_template_kwargs", "nonsense"):
            deep = opening * depth + "1" + closing * depth
            content = f'{{"{name}": {deep}}}'.encode()
            answer = await checked.post(path, content=content, headers=JSON)
            assert answer.status_code == 400
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
