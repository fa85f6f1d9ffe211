"""The transformers backend: any decoder of transformers, with our attention.

It supports more architectures than the native decoder, and is slower.
"""

import inspect
import itertools
import re
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from service.engine.attention import PagedAttention
from service.engine.checkpoint_tensors import open_tensors, reject_foreign, unusable_weight
from service.engine.kv_store import KVShape
from service.engine.layout import Layout
from service.engine.model_runner import LoadedModel
from service.engine.paged_attention import make_paged_attention
from service.engine.quantized_checkpoint import StoredQuantization
from service.engine.stored_weights import open_weights
from service.engine.transfer import to_device
from service.errors import ModelLoadError, first_line

# Layer kinds in transformers' configs whose only state is keys and values by position.
_ATTENTION_LAYERS = {"full_attention", "sliding_attention", "attention"}

# Matches the names of tensors outside a multimodal model's language model.
_OTHER_PARTS = re.compile(
    r"(^|[._])(vision|visual|image|audio|speech|multi_modal|projector|mm)[._]"
)

log = structlog.get_logger(__name__)

_names = (f"chatrpc-{n}" for n in itertools.count())

transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # it is for terminals


class TransformersModel:
    """`service.engine.model_runner.Model` over transformers' modules.

    Args:
        attention: Attention over a KV cache with the shapes that the model's layers use.
    """

    def __init__(self, model: PreTrainedModel, attention: PagedAttention) -> None:
        self._model = model
        self._attention = attention
        model.set_attn_implementation(_register(_AttentionFunction(self._attention)))
        # A few models always compute the logits of every row.
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    def block_tensors(self) -> list[Tensor]:
        """See `service.engine.model_runner.Model.block_tensors`."""
        return self._attention.block_tensors()

    def forward(self, layout: Layout, rows: list[int]) -> Tensor:
        """Compute a step; see `service.engine.model_runner.Model`.

        Returns:
            The logits, in the model's precision.
        """
        # Models of transformers do not return the input of their head. The memory for logits is
        # limited by the step's token budget.
        numbers = (layout.token_ids(), layout.positions(), rows)
        arrays = [np.array(n, dtype=np.int64) for n in numbers] + self._attention.plan(layout)
        token_ids, positions, index, *rest = to_device(arrays, self._model.device)
        self._attention.begin_step(rest)
        logits: Tensor = self._model(
            input_ids=token_ids[None],
            position_ids=positions[None],
            use_cache=False,
            **({"logits_to_keep": index} if self._keeps_logits else {}),
        ).logits[0]
        return logits if self._keeps_logits else logits[index]

    def logits(self, hidden: Tensor) -> Tensor:
        """Return rows that `forward` returned, in float32."""
        return hidden.float()


def load_transformers_model(
    path: Path, stored: StoredQuantization | None, device: torch.device, dtype: torch.dtype
) -> LoadedModel:
    """Load the model in the directory `path` through transformers.

    Args:
        stored: How the checkpoint's weights are quantized; None if they are not.

    Raises:
        ModelLoadError: The model cannot be read, is not complete, or is not supported.
    """
    model = _read(path, stored, device, dtype)
    probe = _probe(model)
    shapes = [probe.shapes[layer] for layer in sorted(probe.shapes)]

    def finish(num_blocks: int, block_size: int, _max_model_len: int) -> TransformersModel:
        attention = make_paged_attention(
            shapes,
            probe.num_heads,
            num_blocks,
            block_size,
            device,
            has_softcap=probe.has_softcap,
        )
        return TransformersModel(model, attention)

    description = {"decoder": type(model).__name__, "dtype": str(dtype).removeprefix("torch.")}
    return LoadedModel(shapes, finish, description)


def _read(
    path: Path, stored: StoredQuantization | None, device: torch.device, dtype: torch.dtype
) -> PreTrainedModel:
    options = {
        "dtype": dtype,
        "device_map": {"": device},
        "output_loading_info": True,  # the result is a pair
        "ignore_mismatched_sizes": True,  # the report lists them, and they are rejected below
    }
    try:
        loaded: Any
        if stored is None:
            _check_stored_dtypes(path)
            loaded = AutoModelForCausalLM.from_pretrained(path, local_files_only=True, **options)
        else:
            loaded = _read_quantized(path, stored, device, options)
    except ModelLoadError:
        raise
    except Exception as error:  # transformers raises many kinds of errors for invalid files
        reason = first_line(error)
        if kind := re.match(r"Unrecognized configuration class .*?(\w+)Config'", reason):
            reason = f"{kind[1]} is not a causal language model, and is not supported."
        raise ModelLoadError(f"The model at {path} cannot be loaded: {reason}") from error
    model: PreTrainedModel
    model, report = loaded
    _check_unexpected(path, report["unexpected_keys"])
    if mismatched := report["mismatched_keys"]:
        name, stored_shape, shape = min(mismatched)
        raise ModelLoadError(
            f"The model at {path} cannot be loaded: {name} has the shape {list(stored_shape)} "
            f"where its config makes it {list(shape)}."
        )
    if missing := report["missing_keys"]:  # transformers warns, and fills them with random numbers
        raise ModelLoadError(
            f"The model at {path} is not complete: it has no {min(missing)}, one of {len(missing)} "
            "tensors that are missing."
        )
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise ModelLoadError(f"{type(model).__name__} takes no position ids and is not supported.")
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    kinds -= _ATTENTION_LAYERS
    if kinds:
        raise ModelLoadError(
            f"{type(model).__name__} has layers that are not supported: {', '.join(sorted(kinds))}."
        )
    return model


def _check_unexpected(path: Path, names: Collection[str]) -> None:
    """Check the tensors of the checkpoint that the model does not use.

    Raises:
        ModelLoadError: One of them belongs to a quantization or an adapter.
    """
    unread = {name for name in names if not _OTHER_PARTS.search(name)}
    reject_foreign(path, unread)
    if unread:
        log.warning("checkpoint_tensors_not_used", first=min(unread), count=len(unread))


class _LazyTensor:
    """A tensor that is read when transformers indexes it."""

    def __init__(self, read: Callable[[], Tensor]) -> None:
        self._read = read

    def __getitem__(self, index: Any) -> Tensor:
        return self._read()[index]


def _read_quantized(
    path: Path, stored: StoredQuantization, device: torch.device, options: dict[str, Any]
) -> Any:
    """Return the model of a quantized checkpoint, and transformers' loading report."""
    # transformers gets the dequantized weights, one by one, and no information on quantization.
    config: Any = AutoConfig.from_pretrained(path, local_files_only=True)
    for part in (config, config.get_text_config()):
        if hasattr(part, "quantization_config"):
            del part.quantization_config
    with torch.device("meta"):  # only the class and the config of the result are used
        make_model: Any = AutoModelForCausalLM.from_config  # transformers does not type it
        empty = make_model(config)
    weights = open_weights(path, device, stored)
    failures: list[ModelLoadError] = []

    def read(name: str) -> Tensor:
        try:
            return weights.read(name)
        except ModelLoadError as error:  # transformers replaces it by an error of its own
            failures.append(error)
            raise

    try:
        tensors = {name: _LazyTensor(partial(read, name)) for name in weights.names}
        return type(empty).from_pretrained(None, config=empty.config, state_dict=tensors, **options)
    except Exception:
        if failures:
            raise failures[0] from None
        raise
    finally:
        weights.close()


def _check_stored_dtypes(path: Path) -> None:
    """Check that no weight is stored in a type that transformers would cast without a scale.

    Raises:
        ModelLoadError: There is such a weight. The message contains its name.
    """
    for name, file in open_tensors(path).items():
        dtype: str = file.get_slice(name).get_dtype()
        is_weight = name.endswith(("weight", "_proj", "_packed", "_blocks"))
        if dtype.startswith(("F8", "F4", "F6", "I8")) or (
            is_weight and not dtype.startswith(("F", "BF"))
        ):
            raise unusable_weight(path, name, dtype)


@torch.inference_mode()
def _probe(model: PreTrainedModel) -> "ShapeProbe":
    """Return what each layer passes to attention, by running the model on one token."""
    probe = ShapeProbe()
    try:
        model.set_attn_implementation(_register(probe))
        token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        model(input_ids=token, position_ids=token, use_cache=False)
    except ModelLoadError:
        raise
    except Exception as error:  # the model's code may not support this kind of call
        raise ModelLoadError(
            f"{type(model).__name__} is not supported: {first_line(error)}"
        ) from error
    if sorted(probe.shapes) != list(range(model.config.get_text_config().num_hidden_layers)):
        raise ModelLoadError(
            f"{type(model).__name__} is not supported: not all of its layers use transformers' "
            "attention interface."
        )
    if any(
        probe.windows[layer] is None for layer in _sliding_layers(model.config.get_text_config())
    ):
        raise ModelLoadError(
            f"{type(model).__name__} is not supported: it passes its sliding window only in a mask."
        )
    return probe


def _sliding_layers(config: PreTrainedConfig) -> list[int]:
    """Return the indices of the layers with a sliding window, from the model's config."""
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        has_window = getattr(config, "sliding_window", None) is not None
        return list(range(config.num_hidden_layers)) if has_window else []
    return [layer for layer, kind in enumerate(kinds) if kind == "sliding_attention"]


class _AttentionFunction:
    """The attention function that transformers' modules call."""

    def __init__(self, attention: PagedAttention) -> None:
        self._attention = attention

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,  # noqa: ARG002  # from the batch instead
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **_: object,
    ) -> tuple[Tensor, None]:
        """Attend with `query` [1, num_heads, T, dim], `key` and `value` [1, num_kv_heads, T, dim].

        Returns:
            [1, T, num_heads, value_dim], and None instead of the weights.
        """
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        attended = self._attention.attend(
            _layer_index(module), query[0], key[0], value[0], scale, sliding_window, softcap
        )
        return attended[None], None


# Arguments of transformers' attention functions that ours applies or can ignore.
_SUPPORTED_ARGUMENTS = {
    "scaling",
    "sliding_window",
    "softcap",
    "is_causal",
    "dropout",  # 0 except in training
    "position_ids",  # the same as in the batch
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "return_dict",
}


class ShapeProbe:
    """An attention function that returns zeros, and records what each layer passes.

    Attributes:
        shapes: The shape of keys and values, by layer.
        windows: The sliding window, by layer.
        num_heads: The largest number of query heads.
        has_softcap: True if a layer has a softcap.
    """

    def __init__(self) -> None:
        self.shapes: dict[int, KVShape] = {}
        self.windows: dict[int, object] = {}
        self.num_heads = 0
        self.has_softcap = False

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: object,
    ) -> tuple[Tensor, None]:
        """Record the layer's arguments and return zeros.

        Raises:
            ModelLoadError: This kind of attention is not supported.
        """
        layer, kind = _layer_index(module), type(module).__name__
        for name, value_given in (kwargs | {"attention_mask": attention_mask}).items():
            if value_given is not None and name not in _SUPPORTED_ARGUMENTS:
                raise ModelLoadError(f"{kind} uses {name} in attention, which is not supported.")
        if False in (kwargs.get("is_causal"), getattr(module, "is_causal", None)):
            raise ModelLoadError(f"{kind} has non-causal attention, which is not supported.")
        if layer in self.shapes:
            raise ModelLoadError(f"{kind} attends twice in a layer, which is not supported.")
        self.windows[layer] = kwargs.get("sliding_window")
        self.num_heads = max(self.num_heads, query.shape[1])
        self.has_softcap |= kwargs.get("softcap") is not None
        self.shapes[layer] = KVShape(key.shape[1], key.shape[-1], value.shape[-1], key.dtype)
        return value.new_zeros(1, query.shape[2], query.shape[1], value.shape[-1]), None


def _layer_index(module: nn.Module) -> int:
    """Return the layer index of an attention module of transformers.

    Raises:
        ModelLoadError: The module has no layer index.
    """
    index = getattr(module, "layer_idx", None)
    if not isinstance(index, int):
        raise ModelLoadError(f"{type(module).__name__} has no layer index, and is not supported.")
    return index


def _register(function: Callable[..., tuple[Tensor, None]]) -> str:
    """Register `function` as an attention implementation of transformers, and return its name."""
    # Each has a name of its own, because the registry is global and there may be several models.
    name = next(_names)
    AttentionInterface.register(name, function)
    return name
