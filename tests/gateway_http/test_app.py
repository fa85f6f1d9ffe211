"""Unknown paths and methods, and the modules that the application imports."""

import subprocess
import sys

import httpx
import pytest


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_unknown_path_is_404(http: httpx.AsyncClient, method: str) -> None:
    for path in ("/none", "/v1/none", "/v1/chat"):
        answer = await http.request(method, path)
        assert answer.status_code == 404
        assert answer.json() == {
            "error": {
                "message": f"Invalid URL ({method} {path})",
                "type": "invalid_request_error",
                "param": None,
                "code": None,
            }
        }


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v1/chat/completions", {"POST"}),
        ("PUT", "/chat/completions", {"POST"}),
        ("POST", "/v1/models", {"GET", "HEAD"}),
        ("DELETE", "/v1/models/a/b", {"GET", "HEAD"}),
        ("POST", "/healthz", {"GET", "HEAD"}),
    ],
)
async def test_wrong_method_is_405(
    http: httpx.AsyncClient, method: str, path: str, allow: set[str]
) -> None:
    answer = await http.request(method, path)
    assert answer.status_code == 405
    assert set(answer.headers["allow"].split(", ")) == allow
    assert answer.json()["error"]["code"] == "method_not_supported"


async def test_options_and_head(http: httpx.AsyncClient) -> None:
    options = await http.options("/v1/chat/completions")
    assert (options.status_code, options.headers["allow"]) == (204, "POST")
    head = await http.head("/v1/models")
    assert (head.status_code, head.content) == (200, b"")


@pytest.mark.parametrize(
    "path", ["/chat/completions", "/v1//chat///completions", "//chat/completions/"]
)
async def test_other_spellings_of_a_path(
    http: httpx.AsyncClient, body: dict[str, object], path: str
) -> None:
    answer = await http.post(f"{http.base_url}{path}", json=body)
    assert answer.status_code == 200


def test_no_model_library_is_loaded() -> None:
    script = "import sys, gateway_http.app; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "transformers", "tokenizers", "numpy", "service"} & set(loaded)
