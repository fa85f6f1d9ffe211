"""Whatever JSON a client sends, the gateway answers, and never with a 5xx."""

import json
from typing import Any

import httpx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway_http.protocol.request import ChatCompletionRequest

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


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
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
