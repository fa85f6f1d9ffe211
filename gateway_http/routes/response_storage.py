"""The store of responses, as requests use it: what they refer to, and what becomes of them."""

from collections.abc import Callable, Sequence
from functools import partial

import msgspec
import structlog
from starlette.requests import Request

from chatrpc_process.access.secret import digest_of, sent_secret
from chatrpc_process.logs.limited import LimitedLog
from gateway_http.convert import stored_responses
from gateway_http.protocol.error import (
    ApiError,
    InvalidRequest,
    ServiceUnavailable,
    UnsupportedParameter,
)
from gateway_http.protocol.responses import ResponseEnd, ResponseObject
from gateway_http.protocol.responses_request import (
    Item,
    ItemReference,
    ResponsePrompt,
    ResponsesRequest,
)
from gateway_http.response_store import (
    ConversationTooLarge,
    ResponseStore,
    StoredItem,
    StoredResponse,
    StoreError,
)
from gateway_http.routes.request_state import bodies_of, caller_of, settings_of

_log = structlog.get_logger(__name__)
_limited_log = LimitedLog()

# The hint for what needs a store, if there is none.
NO_STORE = "It has no store of responses (--response-store)."


def store_of(request: Request) -> ResponseStore | None:
    """Return the gateway's store, or None if it has none."""
    store: ResponseStore | None = request.app.state.response_store
    return store


def owner_of(request: Request) -> str:
    """Return the owner of the responses that a request stores and finds.

    If only the services have keys, the gateway cannot check the client's key. Its digest is then
    the owner, so that other keys find nothing.
    """
    name = caller_of(request).name
    secret = None if name else sent_secret(request.headers.items())
    return name if secret is None else f"sha256:{digest_of(secret)}"


def refers_to_stored(prompt: ResponsePrompt) -> bool:
    """Return whether a prompt refers to stored responses or items."""
    return prompt.previous_response_id is not None or any(
        isinstance(item, ItemReference) for item in _items(prompt)
    )


async def resolve(
    request: Request, prompt: ResponsePrompt, hold: Callable[[int], None]
) -> tuple[list[Item], int]:
    """Replace the references in the input of a prompt by the items that they refer to.

    Args:
        request: The HTTP request.
        prompt: The prompt.
        hold: Counts the bytes that were read as in progress; see `Decoded.hold`.

    Returns:
        The items of the previous response and those before it, and the size in bytes of everything
        that was read.

    Raises:
        ApiError: An item or response does not exist, they are too large, too many large bodies are
            in progress, or the store is not available or does not exist.
    """
    store, owner = store_of(request), owner_of(request)
    max_bytes = settings_of(request).max_body_bytes
    previous: list[bytes] = []
    try:
        if prompt.previous_response_id is not None:
            if store is None:
                raise UnsupportedParameter("previous_response_id", NO_STORE)
            found = await store.conversation(owner, prompt.previous_response_id, max_bytes)
            if found is None:
                raise InvalidRequest(
                    f"Previous response with id '{prompt.previous_response_id[:64]}' not found.",
                    "previous_response_id",
                    "previous_response_not_found",
                )
            previous = [item.body for item in found]
        num_bytes = sum(map(len, previous))
        hold(num_bytes)
        items = await _decoded(request, previous, num_bytes)
        if store is not None:  # the conversion rejects references without a store
            rest = max_bytes - num_bytes
            num_bytes += await _replace_references(request, store, prompt, rest, hold)
    except ConversationTooLarge:
        raise InvalidRequest(
            f"The stored conversation is larger than {max_bytes} bytes.",
            "previous_response_id",
            "request_exceeds_limit",
        ) from None
    except StoreError as error:
        raise unavailable(error) from None
    return items, num_bytes


async def record(
    request: Request, body: ResponsesRequest, result: ResponseObject | ResponseEnd
) -> None:
    """Store a response, unless the request asks for none. If this fails, a warning is logged.

    Args:
        request: The HTTP request.
        body: Its body, with the input.
        result: The response, or the last event of a stream. Its `store` becomes false if the
            response could not be stored.
    """
    store = store_of(request)
    response = result if isinstance(result, ResponseObject) else result.response
    if store is None or not body.store:
        return
    try:
        await store.add(owner_of(request), partial(_stored, body, response))
    except StoreError as error:
        _limited_log.write(_log.warning, "response_not_stored", kind="", error=str(error))
        response.store = False


def unavailable(error: StoreError) -> ApiError:
    """Return the error for a request that needs the store. The cause is only logged."""
    _limited_log.write(_log.warning, "response_store_unavailable", kind="", error=str(error))
    return ServiceUnavailable(
        "The store of responses is not available. Please retry.", reason="RESPONSE_STORE"
    )


async def _replace_references(
    request: Request,
    store: ResponseStore,
    prompt: ResponsePrompt,
    max_bytes: int,
    hold: Callable[[int], None],
) -> int:
    """Replace the references by their items. Return the size of these in bytes.

    Raises:
        ApiError: An item does not exist, or too many large bodies are in progress.
        ConversationTooLarge: The items exceed `max_bytes`.
        StoreError: The store is not available.
    """
    items = _items(prompt)
    ids = {i: item.id for i, item in enumerate(items) if isinstance(item, ItemReference)}
    if not ids:
        return 0
    found = await store.items(owner_of(request), list(ids.values()), max_bytes)
    for i, item_id in ids.items():
        if item_id not in found:
            raise InvalidRequest(
                f"Item with id '{item_id[:64]}' not found.", f"input[{i}].id", "item_not_found"
            )
    num_bytes = sum(len(found[item_id]) for item_id in ids.values())
    if num_bytes > max_bytes:
        raise ConversationTooLarge
    hold(num_bytes)
    decoded = await _decoded(request, [found[item_id] for item_id in ids.values()], num_bytes)
    replaced = dict(zip(ids, decoded, strict=True))
    prompt.input = [replaced.get(i, item) for i, item in enumerate(items)]
    return num_bytes


async def _decoded(request: Request, bodies: Sequence[bytes], num_bytes: int) -> list[Item]:
    """Decode stored items, on a thread if they are large."""
    return await bodies_of(request).converted(
        caller_of(request), num_bytes, stored_responses.items, bodies
    )


def _items(prompt: ResponsePrompt) -> Sequence[Item]:
    return [] if prompt.input is None or isinstance(prompt.input, str) else prompt.input


def _stored(body: ResponsesRequest, response: ResponseObject) -> StoredResponse:
    return StoredResponse(
        id=response.id,
        previous_id=body.previous_response_id,
        body=msgspec.json.encode(response),
        input=[StoredItem(*item) for item in stored_responses.input_items(body, response)],
        output=[StoredItem(*item) for item in stored_responses.output_items(response)],
    )
