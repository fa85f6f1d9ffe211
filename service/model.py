"""Loads a model as the settings describe it: checkpoint, tokenizer, formats, grammars, card."""

import asyncio

import structlog

from chatrpc_process.threads import run_in_daemon_thread
from service.checkpoint import (
    Checkpoint,
    load_generation_defaults,
    load_vocab_size,
    resolve,
)
from service.config import ServiceSettings
from service.domain.backend import ServedModel
from service.domain.chat import JsonLayout
from service.domain.engine import Engine, EngineStats
from service.domain.engine_settings import EngineModel
from service.domain.model import ChatFormats, LocalModel, ModelCard, ReasoningFormat, ToolFormat
from service.domain.sampling import SamplingParams
from service.engines import make_engine
from service.fingerprint import fingerprint
from service.generation.local_backend import locally_served
from service.text.grammars import CompiledGrammars, load_token_trie
from service.text.hf_tokenizer import HfTokenizer, load_tokenizer
from service.text.tool_calls.syntax import chat_formats

# An engine may use this text to measure the loss by quantization.
_CHECK_TEXT = """\
The river rises in the hills to the north and runs for about two hundred miles before it reaches \
the sea. In spring, when the snow melts, the water is high and fast, and the people who live on \
its banks move their animals to higher ground. By the end of the summer it is shallow enough to \
cross on foot. For hundreds of years the river was the only road in this part of the land. Boats \
carried grain, wood and stone down to the port, and came back with salt, cloth and letters. The \
first railway was built in 1864, and within twenty years most boats had gone. Today the old \
harbour is a park, where children play and their parents sit in the sun and drink coffee.
"""

log = structlog.get_logger(__name__)


class ModelLoader:
    """Loads everything of one model except its weights, which the engine loads.

    `model_id` and `served` can be used after `load` has returned.

    Args:
        reads_gguf: See `EngineCapabilities.reads_gguf`.
    """

    def __init__(self, settings: ServiceSettings, *, reads_gguf: bool = False) -> None:
        self._settings = settings
        self._reads_gguf = reads_gguf
        self._checkpoint: Checkpoint | None = None
        self._tokenizer: HfTokenizer
        self._sampling_defaults: SamplingParams
        self._eos_token_ids: frozenset[int]
        self._vocab_size: int
        self._formats: ChatFormats
        self._grammars: CompiledGrammars | None

    def find_checkpoint(self) -> Checkpoint:
        """Download or convert the model's files if needed, and return their directory.

        This blocks the calling thread. The download of a large model takes minutes.

        Raises:
            ModelLoadError: There is no such model, or it cannot be downloaded or converted.
        """
        if self._checkpoint is None:
            settings = self._settings
            self._checkpoint = resolve(
                settings.model, settings.cache_dir, reads_gguf=self._reads_gguf
            )
        return self._checkpoint

    def load(self) -> EngineModel:
        """Download or convert the model's files if needed, and read all but the weights.

        This blocks the calling thread. The download of a large model takes minutes.

        Raises:
            ModelLoadError: The model is missing, corrupt or of a kind that is not served.
        """
        settings = self._settings
        path = self.find_checkpoint().path
        self._tokenizer = load_tokenizer(path)
        self._sampling_defaults, self._eos_token_ids = load_generation_defaults(path)
        self._vocab_size = load_vocab_size(path)
        self._formats = chat_formats(
            self._tokenizer.template,
            None if settings.tool_format == "auto" else ToolFormat(settings.tool_format),
            None
            if settings.reasoning_format == "auto"
            else ReasoningFormat(settings.reasoning_format),
            tool_template=self._tokenizer.tool_template,
        )
        self._grammars = self._load_grammars()
        check_token_ids = self._tokenizer.encode(_CHECK_TEXT, add_special_tokens=True)
        return EngineModel(path, tuple(check_token_ids))

    @property
    def model_id(self) -> str:
        """The model's id for clients."""
        return self._settings.served_model_name or self.find_checkpoint().id

    def served(self, engine: Engine) -> ServedModel:
        """Return the model for the RPCs. `engine` must have been started."""
        return locally_served(self.local_model(engine))

    def local_model(self, engine: Engine) -> LocalModel:
        """Return the model with its engine. `engine` must have been started."""
        checkpoint, settings = self.find_checkpoint(), self._settings
        path = checkpoint.path
        # The options on which completions depend.
        options = (
            engine.capabilities.name,
            settings.dtype,
            settings.quantization,
            settings.kv_cache_dtype,
        )
        card = ModelCard(
            id=self.model_id,
            aliases=tuple(self._settings.model_aliases),
            created=int((path / "config.json").stat().st_mtime),
            owned_by="chatrpc",
            root=checkpoint.root,
            max_model_len=engine.max_model_len,
            fingerprint=fingerprint(path, *options, repr(settings.vllm_args)),
            engine=engine.capabilities.name,
            quantization=engine.capabilities.quantization,
        )
        return LocalModel(
            card,
            self._tokenizer,
            engine,
            self._sampling_defaults,
            self._eos_token_ids,
            self._vocab_size,
            self._formats,
            None if "constraint" in engine.capabilities.unsupported else self._grammars,
            JsonLayout(self._settings.json_whitespace),
            path,
        )

    def _load_grammars(self) -> CompiledGrammars | None:
        """Return the compiler of grammars; None if llguidance does not support the tokenizer.

        If it is None, requests that need a grammar are rejected.
        """
        vocab_size = max(self._vocab_size, self._tokenizer.vocab_size)
        try:
            trie = load_token_trie(self._tokenizer.to_json(), vocab_size, self._eos_token_ids)
        except ValueError as error:
            log.warning("structured_outputs_unavailable", reason=str(error).splitlines()[0])
            return None
        return CompiledGrammars(trie, self._tokenizer.added_token_ids)


class LocalRuntime:
    """`service.domain.backend.ModelRuntime` of an engine in this process.

    Args:
        engine: An engine that has not been started.
    """

    def __init__(self, loader: ModelLoader, engine: Engine) -> None:
        self._loader = loader
        self._engine = engine

    def find_checkpoint(self) -> Checkpoint:
        """See `ModelLoader.find_checkpoint`."""
        return self._loader.find_checkpoint()

    async def load(self) -> ServedModel:
        await self._engine.start(await run_in_daemon_thread(self._loader.load))
        return self._loader.served(self._engine)

    def stats(self) -> EngineStats:
        return self._engine.stats()

    async def wait_available(self, *, is_available: bool) -> None:
        """Return at once, or never: an engine in this process is available until it fails."""
        if not is_available:
            await asyncio.Event().wait()

    async def wait_dead(self) -> None:
        await self._engine.wait_dead()

    async def stop(self) -> bool:
        return await self._engine.stop()


def local_runtime(settings: ServiceSettings) -> LocalRuntime:
    """Return the runtime of the engine that the settings name. Nothing is loaded yet.

    Raises:
        ConfigError: See `make_engine`.
    """
    engine = make_engine(settings.engine, settings.engine_settings)
    loader = ModelLoader(settings, reads_gguf=engine.capabilities.reads_gguf)
    return LocalRuntime(loader, engine)
