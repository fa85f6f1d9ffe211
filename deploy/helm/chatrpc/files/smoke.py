"""Whether a gateway is ready, serves the models named and answers: what `helm test` runs.

    smoke.py URL [--key-file FILE] MODEL...

Needs nothing but Python. Without a key, a gateway that asks for one passes if it is ready and
refuses.
"""

import argparse
import json
import ssl
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any


def call(url: str, key: str | None, body: dict[str, Any] | None = None) -> tuple[int, bytes]:
    """Status and body. The certificate is not looked at: this asks what answers, not who.

    Raises:
        OSError: nobody answers.
    """
    data = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    context = ssl._create_unverified_context() if url.startswith("https:") else None  # noqa: S323
    request = urllib.request.Request(url, data, headers)  # noqa: S310  # the chart names the URL
    try:
        with urllib.request.urlopen(request, timeout=60, context=context) as response:  # noqa: S310
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def complaint(base: str, key: str | None, models: list[str]) -> str | None:
    """What is wrong, if something is."""
    status, _ = call(f"{base}/readyz", None)
    if status != 200:
        return f"/readyz answers {status}"
    status, listed = call(f"{base}/v1/models", key)
    if status == 401 and key is None:
        return None
    if status != 200:
        return f"/v1/models answers {status}"
    served = {model["id"] for model in json.loads(listed)["data"]}
    if missing := sorted(set(models) - served):
        return f"/v1/models lacks {', '.join(missing)}"
    body = {
        "model": models[0],
        "messages": [{"role": "user", "content": "Hello"}],
        "max_completion_tokens": 1,
    }
    status, answer = call(f"{base}/v1/chat/completions", key, body)
    if status != 200:
        return f"{models[0]} answers {status}"
    usage = json.loads(answer)["usage"]
    return None if usage["completion_tokens"] else f"{models[0]} says nothing"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--key-file", type=Path)
    arguments = parser.parse_args()
    key = arguments.key_file.read_text().strip() if arguments.key_file else None
    try:
        wrong = complaint(arguments.url, key, arguments.models)
    except OSError as error:
        wrong = f"{arguments.url} does not answer: {error}"
    print(wrong or "ok")  # noqa: T201
    return 0 if wrong is None else 1


if __name__ == "__main__":
    sys.exit(main())
