"""The `ModelRuntime` of a model that upstreams serve."""

import asyncio
import hashlib
import time
from contextlib import suppress
from dataclasses import replace

import structlog

from chatrpc_process.access.keys import load_secret
from chatrpc_process.files.watched import Watched
from service.config import ServiceSettings
from service.domain.backend import ServedModel
from service.domain.engine import EngineStats
from service.domain.model import ModelCard
from service.errors import ModelLoadError, UpstreamError
from service.upstream.backend import UpstreamBackend, UpstreamModel
from service.upstream.client import ConnectionOptions, Upstream, tls_context
from service.upstream.dialects import Dialect, Names
from service.upstream.discovery import Found, OtherDialect, find
from service.upstream.embeddings import UpstreamEmbeddings
from service.upstream.failures import AttemptFailed
from service.upstream.pool import Member, UpstreamPool
from service.upstream.tokenization import UpstreamTokenizer

# The length of the context if neither the upstream nor the options specify it.
DEFAULT_MODEL_LEN = 131_072
DEFAULT_NUM_SEQS = 256
_PROBE_INTERVAL_S = 10.0
_MIN_PAUSE_S = 0.05

log = structlog.get_logger(__name__)


class UpstreamRuntime:
    """`service.domain.backend.ModelRuntime` of a model that upstreams serve.

    The process does not fail with its upstreams: the model is not ready while all are down.

    Args:
        probe_interval_s: Seconds between two probes of an upstream that serves requests.

    Raises:
        ConfigError: The file of a key or certificate cannot be used.
    """

    def __init__(
        self, settings: ServiceSettings, probe_interval_s: float = _PROBE_INTERVAL_S
    ) -> None:
        self._settings = settings
        self._probe_interval_s = probe_interval_s
        path = settings.upstream_api_key_file
        self._key = None if path is None else Watched(lambda: load_secret(path), path)
        options = ConnectionOptions(
            lambda: None if self._key is None else self._key.value,
            tls_context(settings.upstream_ca, settings.upstream_certificate, settings.upstream_key),
            settings.upstream_connect_timeout_s,
            settings.upstream_read_timeout_s,
        )
        name = settings.upstream_dialect
        self._dialect = None if name == "auto" else Dialect(name)
        self._pool = UpstreamPool([Upstream(url, options) for url in settings.upstream_url])
        self._backend: UpstreamBackend | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def load(self) -> ServedModel:
        """Find the model at an upstream. Wait until one can be reached.

        Raises:
            ModelLoadError: An upstream rejects the key, does not serve the model, or does not have
                OpenAI's API.
        """
        if self._key is not None:
            self._tasks.append(asyncio.ensure_future(self._key.watch()))
        all_found = await self._first_found()
        found, *others = all_found.values()
        settings, entry = self._settings, found.model
        model = UpstreamModel(
            settings.served_model_name or entry.id,
            entry.id,
            _model_len(
                settings.max_model_len,
                found.max_model_len,
                *(each.max_model_len for each in others if each.dialect is found.dialect),
            ),
            Names(found.dialect),
        )
        for member, each in all_found.items():
            try:
                _check(member, each, model)
            except AttemptFailed as failed:
                self._pool.note_failed_probe(member, failed)
        log.info("upstream_found", model=entry.id, dialect=found.dialect.value)
        self._backend = UpstreamBackend(
            model, self._pool, settings.max_num_seqs or DEFAULT_NUM_SEQS, settings.max_queue_size
        )
        self._tasks += [
            asyncio.ensure_future(self._watch(member, model)) for member in self._pool.members
        ]
        card = ModelCard(
            id=model.id,
            aliases=tuple(settings.model_aliases),
            created=entry.created or int(time.time()),
            owned_by=entry.owned_by or "upstream",
            root=entry.root or entry.id,
            max_model_len=model.max_model_len,
            fingerprint=_fingerprint(model),
            engine="openai",
            quantization=entry.quantization if isinstance(entry.quantization, str) else "",
            max_output_tokens=entry.output_length,
        )
        tokenizer = UpstreamTokenizer(model, self._pool)
        return ServedModel(
            card,
            self._backend,
            self._backend,
            UpstreamEmbeddings(model, self._pool),
            remote_tokenizer=tokenizer if found.dialect is Dialect.VLLM else None,
        )

    def stats(self) -> EngineStats:
        stats = EngineStats() if self._backend is None else self._backend.stats()
        return replace(stats, upstreams=self._pool.stats())

    async def wait_available(self, *, is_available: bool) -> None:
        await self._pool.wait_available(is_available=is_available)

    async def wait_dead(self) -> None:
        """Never return: an upstream that has failed may come back."""
        await asyncio.Event().wait()

    async def stop(self) -> bool:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for member in self._pool.members:
            await member.upstream.aclose()
        return True

    async def _first_found(self) -> dict[Member, Found]:
        """Return what the upstreams have that can be reached. Wait until there is one."""
        while True:
            members = self._pool.members
            results = await asyncio.gather(*(self._find(member) for member in members))
            pairs = zip(members, results, strict=True)
            found = {member: each for member, each in pairs if isinstance(each, Found)}
            if found:
                return found
            for result in results:
                if isinstance(result, AttemptFailed) and isinstance(result.error, UpstreamError):
                    cause = ": ".join(part for part in (result.cause, result.text) if part)
                    raise ModelLoadError(f"{result.error} ({cause})")
            now_s = time.monotonic()
            pause_s = min(member.aside_until_s for member in members) - now_s
            await asyncio.sleep(max(_MIN_PAUSE_S, pause_s))

    async def _find(self, member: Member) -> Found | AttemptFailed:
        settings = self._settings
        wanted = settings.upstream_model
        if wanted is None and "model" in settings.model_fields_set:
            wanted = settings.model
        try:
            found = await find(member.upstream, wanted, self._dialect)
        except AttemptFailed as failed:
            self._pool.note_failure(member, failed)
            return failed
        self._pool.note_success(member)
        return found

    async def _watch(self, member: Member, model: UpstreamModel) -> None:
        """Probe an upstream at intervals, and after a failure when its backoff has passed."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(None if member.is_down else self._probe_interval_s):
                    await member.wait_down()
            pause_s = member.aside_until_s - time.monotonic()
            if member.is_down and pause_s > 0:
                await asyncio.sleep(pause_s)
            try:
                await self._probe(member, model)
            except AttemptFailed as failed:
                self._pool.note_failed_probe(member, failed)
            except Exception:  # without probes, an upstream would stay down
                log.exception("unexpected_error")
                await asyncio.sleep(self._probe_interval_s)
            else:
                self._pool.note_success(member)

    async def _probe(self, member: Member, model: UpstreamModel) -> None:
        """Check that an upstream serves the model, and is of the same kind as the others.

        Raises:
            AttemptFailed: It does not, or it is not.
        """
        # To find the kind may need a further request.
        dialect = model.names.dialect if member.is_checked else self._dialect
        found = await find(member.upstream, model.upstream_id, dialect)
        if not member.is_checked:
            _check(member, found, model)


def upstream_runtime(settings: ServiceSettings) -> UpstreamRuntime:
    """Return the runtime of the upstreams that the settings name.

    Raises:
        ConfigError: See `UpstreamRuntime`.
    """
    return UpstreamRuntime(settings)


def _model_len(*lengths: int | None) -> int:
    known = [length for length in lengths if length is not None]
    return min(known, default=DEFAULT_MODEL_LEN)


def _check(member: Member, found: Found, model: UpstreamModel) -> None:
    """Check that an upstream is of the same kind as the others. Otherwise exclude it.

    Raises:
        AttemptFailed: It is of another kind.
    """
    label, dialect = member.upstream.label, model.names.dialect
    member.is_excluded = found.dialect is not dialect
    if member.is_excluded:
        text = (
            f"The upstream {label} is of the kind {found.dialect.value!r}, but the model is served "
            f"with that of {dialect.value!r}."
        )
        raise AttemptFailed(OtherDialect(text), text)
    member.is_checked = True
    if found.max_model_len is not None and found.max_model_len < model.max_model_len:
        lengths = {"max_model_len": found.max_model_len, "of_model": model.max_model_len}
        log.warning("upstream_context_is_shorter", upstream=label, **lengths)


def _fingerprint(model: UpstreamModel) -> str:
    identity = repr((model.upstream_id, model.names.dialect.value))
    return f"fp_{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
