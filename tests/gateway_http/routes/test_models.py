import httpx
import pytest

from tests.fakes.chat_service import FakeService, model


@pytest.mark.parametrize("path", ["/v1/models", "/models", "/v1//models", "//v1/models/"])
async def test_list_reads_every_page(
    http: httpx.AsyncClient, service: FakeService, path: str
) -> None:
    service.models = [model("a/b"), model("c"), model("d")]
    page = (await http.get(f"{http.base_url}{path}")).json()
    assert page["object"] == "list"
    assert [each["id"] for each in page["data"]] == ["a/b", "c", "d"]


@pytest.mark.parametrize("model_id", ["a/b", "a%2Fb", "nick"])
@pytest.mark.parametrize("prefix", ["/v1/models/", "/models/"])
async def test_model_is_retrieved_by_name(
    http: httpx.AsyncClient, service: FakeService, prefix: str, model_id: str
) -> None:
    service.models = [model("c"), model("a/b", aliases=("nick",))]
    answer = await http.get(prefix + model_id)
    assert answer.json()["id"] == "a/b"


async def test_unknown_model_is_404(http: httpx.AsyncClient) -> None:
    answer = await http.get("/v1/models/none/such")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
