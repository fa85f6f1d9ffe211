"""Check that a gateway is ready, serves the given models and generates: the program of `helm test`.

    smoke.py URL [--key-file FILE] [--certificate FILE --certificate-key FILE] MODEL...

It needs only Python. If the gateway requires a key and none is given, the check passes if the
gateway is ready and rejects the call. If the gateway requires client certificates, the options for
them are required.
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
    """The address of the gateway, and the credentials for it."""

    url: str
    key: str | None
    tls: ssl.SSLContext


def tls_context(certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    """Return a TLS context with the client certificate. It does not verify the gateway's one.

    Raises:
        OSError: The certificate and the key do not match.
    """
    context = ssl._create_unverified_context()  # noqa: S323
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    return context


def call(gateway: Gateway, path: str, body: dict[str, Any] | None = None) -> tuple[int, bytes]:
    """Call the gateway and return the status and the body.

    Raises:
        OSError: The gateway cannot be reached.
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


def problem(gateway: Gateway, models: list[str]) -> str | None:
    """Return the first problem, or None."""
    status, _ = call(gateway, "/readyz")
    if status != 200:
        return f"/readyz returned {status}"
    status, listed = call(gateway, "/v1/models")
    if status == 401 and gateway.key is None:
        return None
    if status != 200:
        return f"/v1/models returned {status}"
    served = {model["id"] for model in json.loads(listed)["data"]}
    if missing := sorted(set(models) - served):
        return f"/v1/models lacks {', '.join(missing)}"
    body = {
        "model": models[0],
        "messages": [{"role": "user", "content": "Hello"}],
        "max_completion_tokens": 1,
    }
    status, completion = call(gateway, "/v1/chat/completions", body)
    if status != 200:
        return f"{models[0]}: the completion returned {status}"
    usage = json.loads(completion)["usage"]
    return None if usage["completion_tokens"] else f"{models[0]}: the completion has no tokens"


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
        found = problem(Gateway(arguments.url, key, tls), arguments.models)
    except OSError as error:
        found = f"{arguments.url} cannot be reached: {error}"
    print(found or "ok")  # noqa: T201
    return 0 if found is None else 1


if __name__ == "__main__":
    sys.exit(main())
