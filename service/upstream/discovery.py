"""Finds the model at an upstream, and the kind of the upstream."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from service.errors import (
    InvalidField,
    UnsupportedMethod,
    UpstreamDown,
    UpstreamError,
    UpstreamInvalidResponse,
)
from service.upstream.client import Upstream
from service.upstream.dialects import Dialect, Names
from service.upstream.failures import AttemptFailed, Failures
from service.upstream.wire import Model, Props, ServerVersion, decoded

# By `owned_by` in the list of models. Our own gateway has vLLM's options.
_OWNERS = {
    "vllm": Dialect.VLLM,
    "sglang": Dialect.SGLANG,
    "llamacpp": Dialect.LLAMACPP,
    "llama.cpp": Dialect.LLAMACPP,
    "library": Dialect.OLLAMA,
    "chatrpc": Dialect.VLLM,
}
# Names that this many models have are in an error.
_MAX_NAMED_MODELS = 20
# An id in responses is checked again after this time if the list of models could not be read.
_UNCHECKED_S = 60.0
# An upstream that has a new id in each response must not fill the memory.
_MAX_ACCEPTED_IDS = 100

log = structlog.get_logger(__name__)

_FAILURES = Failures(Names(Dialect.OPENAI), "its list of models", "", "model")


class NoSuchModel(UpstreamError):
    """An upstream does not serve the model, or it serves several and none is chosen."""


class OtherDialect(UpstreamError):
    """An upstream is of another kind than those that serve the model."""


@dataclass(frozen=True, slots=True)
class Found:
    """A model at an upstream.

    Attributes:
        max_model_len: Maximum number of tokens of a sequence; None if it is unknown.
    """

    model: Model
    dialect: Dialect
    max_model_len: int | None


async def find(upstream: Upstream, wanted: str | None, dialect: Dialect | None) -> Found:
    """Find a model.

    Args:
        wanted: The model's id; None if the upstream has only one.
        dialect: The kind of the upstream; None if it is to be found.

    Raises:
        AttemptFailed: The upstream failed, or it does not serve the model.
    """
    try:
        models, server = await upstream.models(_FAILURES)
    except AttemptFailed as failed:
        if not isinstance(failed.error, UnsupportedMethod):
            raise
        if wanted is None:
            text = f"The upstream {upstream.label} has no list of models. Set upstream_model."
            raise AttemptFailed(NoSuchModel(text), text) from failed
        models, server = [Model(wanted)], ""
    except InvalidField as error:
        invalid = UpstreamInvalidResponse("The upstream service rejects requests for its models.")
        raise AttemptFailed(invalid, str(error)) from error
    model = _chosen(upstream, models, wanted)
    found = dialect or await _dialect(upstream, model, server)
    length = model.length
    if found is Dialect.LLAMACPP:
        length = await _slot_length(upstream) or length
    return Found(model, found, length)


async def check_model(upstream: Upstream, model_id: str, answered: str | None) -> None:
    """Check that a response is that of the model, before its output is used.

    The id in responses may be another one than that in requests, such as that of a version. When
    there is a new one, the list of models must still have the model. If the list cannot be read,
    the response is used, and the id is checked again later.

    Args:
        model_id: The model's id in requests.
        answered: The model's id in the response.

    Raises:
        AttemptFailed: The upstream does not serve the model any more.
    """
    if not answered or answered == model_id or _is_accepted(upstream, answered):
        return
    async with upstream.checking:
        if _is_accepted(upstream, answered):  # another request has checked it
            return
        accepted_until_s = math.inf
        try:
            await find(upstream, model_id, Dialect.OPENAI)
        except AttemptFailed as failed:
            if isinstance(failed.error, NoSuchModel):
                gone = UpstreamDown("The upstream service no longer serves the model.")
                raise AttemptFailed(gone, failed.cause) from failed
            accepted_until_s = time.monotonic() + _UNCHECKED_S
        else:
            log.info("upstream_model_name", upstream=upstream.label, model=model_id, name=answered)
        if len(upstream.accepted_ids) >= _MAX_ACCEPTED_IDS:
            upstream.accepted_ids.clear()
        upstream.accepted_ids[answered] = accepted_until_s


def _is_accepted(upstream: Upstream, answered: str) -> bool:
    return upstream.accepted_ids.get(answered, 0.0) > time.monotonic()


def _chosen(upstream: Upstream, models: Sequence[Model], wanted: str | None) -> Model:
    by_id = {model.id: model for model in models}
    if wanted is None and len(by_id) == 1:
        return models[0]
    if wanted is not None and wanted in by_id:
        return by_id[wanted]
    names = ", ".join(sorted(by_id)[:_MAX_NAMED_MODELS]) or "none"
    text = (
        f"The upstream {upstream.label} does not serve the model {wanted!r}. It serves: {names}."
        if wanted is not None
        else f"The upstream {upstream.label} serves several models or none. Set upstream_model to "
        f"one of them: {names}."
    )
    raise AttemptFailed(NoSuchModel(text), text)


async def _dialect(upstream: Upstream, model: Model, server: str) -> Dialect:
    known = _OWNERS.get((model.owned_by or "").lower()) or _OWNERS.get(server.lower())
    if known is not None:
        return known
    content = await upstream.get("/version")
    try:
        decoded(content or b"", ServerVersion)
    except UpstreamInvalidResponse:
        return Dialect.OPENAI
    return Dialect.VLLM


async def _slot_length(upstream: Upstream) -> int | None:
    """Return the length of the context of a slot of llama.cpp; None if it is unknown."""
    content = await upstream.get("/props")
    try:
        return decoded(content or b"", Props).default_generation_settings.n_ctx
    except UpstreamInvalidResponse:
        return None
