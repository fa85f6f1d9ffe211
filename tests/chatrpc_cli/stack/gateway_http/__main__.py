"""A fake gateway: /readyz, /v1/models, a chat route that echoes, and a journal of its events.

FAKE_GATEWAY may be `stubborn`: it ignores SIGTERM.
"""

import argparse
import json
import os
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

JOURNAL = Path(os.environ["JOURNAL"])
IS_STUBBORN = os.environ.get("FAKE_GATEWAY") == "stubborn"


def note(event: str) -> None:
    with JOURNAL.open("a") as journal:
        journal.write(f"gateway {event}\n")


class Gateway(BaseHTTPRequestHandler):
    num_probes = 0

    def do_GET(self) -> None:
        """Serve GET. The first request for readiness gets an error."""
        if self.path == "/v1/models":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"data": [{"id": "first"}, {"id": "second"}]}')
            return
        Gateway.num_probes += 1
        is_ready = self.path == "/readyz" and Gateway.num_probes > 1
        self.send_response(200 if is_ready else 503)
        self.end_headers()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"path": self.path, "body": json.loads(body)}).encode())

    def log_message(self, *_: object) -> None: ...


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", required=True)
    parser.add_argument("--api-keys")
    parser.add_argument("--insecure", action="store_true")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream")
    for option in ("--models", "--registry", "--models-memory", "--model-idle-timeout-s"):
        parser.add_argument(option)
    parser.add_argument("--drain-timeout-s", type=int, required=True)
    options = parser.parse_args()
    note(f"started {os.getpid()}")
    if options.api_keys is not None:
        note(f"keys {options.api_keys}")

    stop = threading.Event()

    def on_sigterm(*_: object) -> None:
        note("stopping")
        stop.set()

    signal.signal(signal.SIGTERM, on_sigterm)
    server = ThreadingHTTPServer((options.host, options.port), Gateway)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    note(f"upstream {options.upstream}")
    note(f"models {options.models} {options.models_memory} {options.model_idle_timeout_s}")
    note(f"registry {options.registry}")
    stop.wait()
    if IS_STUBBORN:
        threading.Event().wait()
    server.shutdown()
    note("stopped")


main()
