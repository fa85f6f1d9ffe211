"""From the settings to a model that is served: checkpoint, tokenizer, engine, card."""

from threading import Thread

import structlog

from service.checkpoint import (
    Checkpoint,
    load_generation_defaults,
    load_vocab_size,
    resolve,
)
from service.config import ServiceSettings
from service.domain.chat import JsonLayout
from service.domain.engine import Engine
from service.domain.model import ChatFormats, ModelCard, ReasoningFormat, ServedModel, ToolFormat
from service.domain.sampling import SamplingParams
from service.engine.core import EngineCore
from service.fingerprint import fingerprint
from service.text.grammars import CompiledGrammars, load_token_trie
from service.text.hf_tokenizer import HfTokenizer, load_tokenizer
from service.text.tool_calls.syntax import chat_formats

# What int8 costs a model is measured on this text when it is loaded.
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
    """Loads one model. What it says of it is known when `load`, on the engine's thread, is done.

    torch is imported there too, 2 s of the start, so that the server answers probes meanwhile.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self._settings = settings
        self._checkpoint: Checkpoint
        self._tokenizer: HfTokenizer
        self._sampling_defaults: SamplingParams
        self._eos_token_ids: frozenset[int]
        self._vocab_size: int
        self._formats: ChatFormats
        self._grammars: CompiledGrammars | None

    def load(self) -> tuple[EngineCore, int]:
        """The engine core and its longest sequence.

        Raises:
            ModelLoadError: the model is missing, corrupt or of a kind that is not served.
        """
        settings = self._settings
        # A first start converts and compiles at once. Nobody waits for it if the model is no good.
        compiling = Thread(target=_compile_kernels, args=(settings,), daemon=True)
        compiling.start()
        self._checkpoint = resolve(settings.model, settings.cache_dir)
        self._tokenizer = load_tokenizer(self._checkpoint.path)
        self._sampling_defaults, self._eos_token_ids = load_generation_defaults(
            self._checkpoint.path
        )
        self._vocab_size = load_vocab_size(self._checkpoint.path)
        self._formats = chat_formats(
            self._tokenizer.template,
            None if settings.tool_format == "auto" else ToolFormat(settings.tool_format),
            None
            if settings.reasoning_format == "auto"
            else ReasoningFormat(settings.reasoning_format),
            tool_template=self._tokenizer.tool_template,
        )
        self._grammars = self._load_grammars()
        compiling.join()
        from service.engine.load import EngineOptions, load_engine  # noqa: PLC0415  # see above

        return load_engine(
            EngineOptions(
                path=self._checkpoint.path,
                device=settings.device,
                dtype=settings.dtype,
                quantization=settings.quantization,
                cache_dir=settings.cache_dir,
                max_model_len=settings.max_model_len,
                max_num_seqs=settings.max_num_seqs,
                max_num_batched_tokens=settings.max_num_batched_tokens,
                block_size=settings.block_size,
                kv_cache_memory_bytes=settings.kv_cache_memory_bytes,
                num_threads=settings.num_threads,
                prefix_caching=settings.prefix_caching,
                num_speculative_tokens=(
                    settings.num_speculative_tokens if settings.speculation == "ngram" else 0
                ),
                check_token_ids=tuple(self._tokenizer.encode(_CHECK_TEXT, add_special_tokens=True)),
            )
        )

    @property
    def model_id(self) -> str:
        return self._settings.served_model_name or self._checkpoint.id

    def served(self, engine: Engine) -> ServedModel:
        """The loaded model, answering through `engine`."""
        path = self._checkpoint.path
        card = ModelCard(
            id=self.model_id,
            aliases=tuple(self._settings.model_aliases),
            created=int((path / "config.json").stat().st_mtime),
            owned_by="chatrpc",
            root=self._checkpoint.root,
            max_model_len=engine.max_model_len,
            fingerprint=fingerprint(path, self._settings.dtype, self._settings.quantization),
        )
        return ServedModel(
            card,
            self._tokenizer,
            engine,
            self._sampling_defaults,
            self._eos_token_ids,
            self._vocab_size,
            self._formats,
            self._grammars,
            JsonLayout(self._settings.json_whitespace),
        )

    def _load_grammars(self) -> CompiledGrammars | None:
        """None for a tokenizer that llguidance does not know; requests that need it are refused."""
        vocab_size = max(self._vocab_size, self._tokenizer.vocab_size)
        try:
            trie = load_token_trie(self._tokenizer.to_json(), vocab_size, self._eos_token_ids)
        except ValueError as error:
            log.warning("structured_outputs_unavailable", reason=str(error).splitlines()[0])
            return None
        return CompiledGrammars(trie, self._tokenizer.added_token_ids)


def _compile_kernels(settings: ServiceSettings) -> None:
    """Compile the CPU kernels, unless the model will run on a GPU."""
    if settings.device == "cuda":
        return
    from service.engine.native.build import compile_kernels  # noqa: PLC0415  # as above

    compile_kernels(settings.cache_dir, may_use_gpu=settings.device == "auto")
