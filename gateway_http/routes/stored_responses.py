"""GET and DELETE /v1/responses/{id}, and GET /v1/responses/{id}/input_items."""

from collections.abc import Awaitable
from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gateway_http.http.request_io import json_response
from gateway_http.protocol.error import ApiError, InvalidRequest, UnsupportedParameter
from gateway_http.protocol.responses import DeletedResponse, ItemPage
from gateway_http.response_store import (
    ConversationTooLarge,
    ResponseStore,
    StoredItem,
    StoreError,
)
from gateway_http.routes.request_state import caller_of, context_of, settings_of
from gateway_http.routes.response_storage import owner_of, store_of, unavailable

_Result = TypeVar("_Result")

_MAX_LIMIT = 100
_DEFAULT_LIMIT = 20


async def retrieve_response(request: Request) -> Response:
    """Return a stored response."""
    for name in ("stream", "starting_after"):
        if request.query_params.get(name, "false") != "false":
            raise UnsupportedParameter(name)
    store, owner, response_id = _stored(request)
    with caller_of(request).tokenization():
        body = await _available(store.response(owner, response_id))
    if body is None:
        raise _not_found(response_id)
    return Response(body, media_type="application/json")


async def delete_response(request: Request) -> Response:
    """Delete a stored response."""
    store, owner, response_id = _stored(request)
    with caller_of(request).tokenization():
        is_deleted = await _available(store.delete(owner, response_id))
    if not is_deleted:
        raise _not_found(response_id)
    return json_response(DeletedResponse(response_id))


async def list_input_items(request: Request) -> Response:
    """Return a page of the items that a stored response was generated from."""
    limit, is_descending = _limit(request), _is_descending(request)
    store, owner, response_id = _stored(request)
    max_bytes = settings_of(request).max_body_bytes
    try:
        with caller_of(request).tokenization():
            items = await _available(
                store.conversation(owner, response_id, max_bytes, has_output=False)
            )
    except ConversationTooLarge:
        raise InvalidRequest(f"The items are larger than {max_bytes} bytes.") from None
    if items is None:
        raise _not_found(response_id)
    if is_descending:
        items.reverse()
    rest = items[_start(request, items) :]
    page = rest[:limit]
    return json_response(
        ItemPage(
            data=[msgspec.Raw(item.body) for item in page],
            first_id=page[0].id if page else None,
            last_id=page[-1].id if page else None,
            has_more=len(rest) > limit,
        )
    )


def _stored(request: Request) -> tuple[ResponseStore, str, str]:
    """Return the store, the owner of the caller's responses, and the id in the path.

    Raises:
        ApiError: The gateway has no store.
    """
    store = store_of(request)
    context_of(request).limit_headers = caller_of(request).limits
    response_id = request.path_params["response_id"]
    if store is None:
        raise _not_found(response_id, " This server has no store of responses (--response-store).")
    return store, owner_of(request), response_id


async def _available(result: Awaitable[_Result]) -> _Result:
    try:
        return await result
    except StoreError as error:
        raise unavailable(error) from None


def _not_found(response_id: str, hint: str = "") -> ApiError:
    message = f"Response with id '{response_id[:64]}' not found.{hint}"
    return ApiError(404, message, param="response_id", code="not_found")


def _limit(request: Request) -> int:
    text = request.query_params.get("limit", str(_DEFAULT_LIMIT))
    if not (text.isascii() and text.isdecimal() and len(text) < 4 and 1 <= int(text) <= _MAX_LIMIT):
        raise InvalidRequest(
            f"Invalid 'limit': expected an integer from 1 to {_MAX_LIMIT}.",
            "limit",
            "invalid_value",
        )
    return int(text)


def _is_descending(request: Request) -> bool:
    order = request.query_params.get("order", "desc")
    if order not in {"asc", "desc"}:
        raise InvalidRequest("Invalid 'order': expected asc or desc.", "order", "invalid_value")
    return order == "desc"


def _start(request: Request, items: list[StoredItem]) -> int:
    """Return the index of the first item of the page."""
    after = request.query_params.get("after")
    if after is None:
        return 0
    for index, item in enumerate(items):
        if item.id == after:
            return index + 1
    raise InvalidRequest(f"Invalid 'after': there is no item '{after[:64]}'.", "after")
