"""An OpenAI-compatible server that responds with `la` per token: `echo_server.py PORT [MODE]`.

Modes: `dies` exits at once. `hangs` sends no response to a request for more than two tokens.
`short` leaves out one token of such a response. `notes FILE` writes the path of its caches to FILE.
"""

import asyncio
import json
import os
import sys
from pathlib import Path

from aiohttp import web


async def complete(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    if "hangs" in sys.argv and body["max_tokens"] > 2:
        await asyncio.Event().wait()
    is_short = "short" in sys.argv and body["max_tokens"] > 2
    num_tokens = body["max_tokens"] - is_short
    for _ in range(num_tokens):
        await send_event(response, {"choices": [{"delta": {"content": "la "}}]})
    prompt = sum(len(message["content"].split()) for message in body["messages"])
    usage = {"prompt_tokens": prompt, "completion_tokens": num_tokens}
    await send_event(response, {"choices": [], "usage": usage})
    await response.write(b"data: [DONE]\n\n")
    return response


async def send_event(response: web.StreamResponse, event: object) -> None:
    await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")


if __name__ == "__main__":
    if "dies" in sys.argv:
        sys.exit("no such model")
    if "notes" in sys.argv:
        with Path(sys.argv[-1]).open("a") as file:
            print(os.environ.get("XDG_CACHE_HOME", ""), file=file)
    app = web.Application()
    app.router.add_post("/v1/chat/completions", complete)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
