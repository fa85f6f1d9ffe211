"""The request to `transformers serve` for a response of an exact length."""

import json

from bench.peers.transformers_serve import body
from bench.request import ask


def test_request_disables_the_end_of_sequence_token() -> None:
    asked = body("model", ask("Hi", 7))
    assert json.loads(asked["generation_config"]) == {
        "max_new_tokens": 7,
        "do_sample": False,
        "eos_token_id": -1,
    }
    assert "ignore_eos" not in asked  # the server rejects this option
    assert asked["messages"] == [{"role": "user", "content": "Hi"}]
