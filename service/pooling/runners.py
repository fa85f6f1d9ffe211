"""The models of pooling: they turn the inputs of one step into vectors of numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

from service.domain.engine_settings import EngineSettings
from service.domain.pooling import Task
from service.engine.host_resources import available_cpus
from service.errors import ModelLoadError
from service.pooling.batch import PackedBatch, TokenizedInput, packed
from service.pooling.checkpoint import embedding_modules
from service.pooling.engine import Runner
from service.pooling.modules import load_modules, pool
from service.pooling.transformer import Transformer, load_transformer, read_model

Vectors = list[NDArray[np.float32]]

transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # it is for terminals


class EmbeddingRunner:
    """Computes embeddings without the last normalization.

    Args:
        modules: The modules after pooling.
        modes: The modes of pooling.
    """

    def __init__(self, transformer: Transformer, modules: Any, modes: tuple[str, ...]) -> None:
        self._transformer = transformer
        self._modules = modules
        self._modes = modes
        [numbers] = self.run(packed([TokenizedInput([0])]))
        self.num_outputs = len(numbers)

    @property
    def is_packed(self) -> bool:
        """See `Transformer.is_packed`."""
        return self._transformer.is_packed

    @torch.inference_mode()
    def run(self, batch: PackedBatch) -> Vectors:
        """See `service.pooling.engine.Runner.run`."""
        rows: list[Tensor] = []
        for group, states in self._transformer.hidden_states(batch):
            rows.extend(self._modules(pool(states, self._modes, group.num_skipped)))
        return _in_order(batch, torch.stack(rows))


class ClassifierRunner:
    """Computes the numbers of a classifier's head (logits) through transformers' own class.

    Inputs of equal length are computed together, so there is no padding.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        config = model.config.get_text_config()
        if config.pad_token_id is None:
            # Without this number transformers' decoders compute one input at a time. No id is -1,
            # so the last token counts.
            config.pad_token_id = -1
        self.num_outputs = int(config.num_labels)
        self._takes_types = bool(getattr(config, "type_vocab_size", 0) > 1)

    @torch.inference_mode()
    def run(self, batch: PackedBatch) -> Vectors:
        """See `service.pooling.engine.Runner.run`."""
        device, rows = self._model.device, []
        for group in batch.groups:
            inputs = batch.of_group(group)
            ids = torch.tensor([list(each.token_ids) for each in inputs], device=device)
            fields = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            if self._takes_types:
                types = [list(each.type_ids) or [0] * len(each) for each in inputs]
                fields["token_type_ids"] = torch.tensor(types, device=device)
            rows.append(self._model(**fields).logits.float())
        return _in_order(batch, torch.cat(rows))


def load_runner(path: Path, task: Task, settings: EngineSettings) -> Runner:
    """Load the model in the directory `path`. Call it on the thread that runs the model.

    Raises:
        ModelLoadError: The model cannot be served.
    """
    torch.set_num_threads(settings.num_threads or available_cpus())
    device = _device(settings)
    dtype = torch.float32 if settings.dtype == "auto" else getattr(torch, settings.dtype)
    if task is not Task.EMBED:
        return ClassifierRunner(read_model(AutoModelForSequenceClassification, path, device, dtype))
    modules = embedding_modules(path)
    return EmbeddingRunner(
        load_transformer(path, device, dtype), load_modules(modules, device), modules.pooling.modes
    )


def _device(settings: EngineSettings) -> torch.device:
    has_cuda = torch.cuda.is_available()
    if settings.device == "cuda" and not has_cuda:
        raise ModelLoadError("device is cuda, and there is no CUDA device.")
    return torch.device("cuda" if has_cuda and settings.device != "cpu" else "cpu")


def _in_order(batch: PackedBatch, rows: Tensor) -> Vectors:
    """Return the rows of a batch in the order of the inputs that were packed."""
    arrays = rows.float().cpu().numpy()
    found: Vectors = [arrays[0]] * len(batch.order)
    for index, row in zip(batch.order, arrays, strict=True):
        found[index] = row
    return found
