"""Whether a gateway is ready, serves the models named and answers: what `helm test` runs.

    smoke.py URL [--key-file FILE] [--certificate FILE --certificate-key FILE] MODEL...

Needs nothing but Python. Without a key, a gateway that asks for one passes if it is ready and
refuses. One that asks for certificates answers nobody without.
"""

import argparse
import json
import ssl
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Gateway:
    """Where it is, and what it is shown."""

    url: str
    key: str | None
    tls: ssl.SSLContext


def tls_context(certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    """The gateway's own certificate is not looked at: this asks what answers, not who.

    Raises:
        OSError: the files are no pair.
    """
    context = ssl._create_unverified_context()  # noqa: S323
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    return context


def call(gateway: Gateway, path: str, body: dict[str, Any] | None = None) -> tuple[int, bytes]:
    """Status and body.

    Raises:
        OSError: nobody answers.
    """
    data = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    if gateway.key is not None:
        headers["authorization"] = f"Bearer {gateway.key}"
    request = urllib.request.Request(gateway.url + path, data, headers)  # noqa: S310  # the chart's
    try:
        with urllib.request.urlopen(  # noqa: S310
            request, timeout=60, context=gateway.tls
        ) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def complaint(gateway: Gateway, models: list[str]) -> str | None:
    """What is wrong, if something is."""
    status, _ = call(gateway, "/readyz")
    if status != 200:
        return f"/readyz answers {status}"
    status, listed = call(gateway, "/v1/models")
    if status == 401 and gateway.key is None:
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
    status, answer = call(gateway, "/v1/chat/completions", body)
    if status != 200:
        return f"{models[0]} answers {status}"
    usage = json.loads(answer)["usage"]
    return None if usage["completion_tokens"] else f"{models[0]} says nothing"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--key-file", type=Path)
    parser.add_argument("--certificate", type=Path)
    parser.add_argument("--certificate-key", type=Path)
    arguments = parser.parse_args()
    key = arguments.key_file.read_text().strip() if arguments.key_file else None
    try:
        tls = tls_context(arguments.certificate, arguments.certificate_key)
        wrong = complaint(Gateway(arguments.url, key, tls), arguments.models)
    except OSError as error:
        wrong = f"{arguments.url} does not answer: {error}"
    print(wrong or "ok")  # noqa: T201
    return 0 if wrong is None else 1


if __name__ == "__main__":
    sys.exit(main())
