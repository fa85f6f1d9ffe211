"""Any decoder of transformers, through its own modules and our attention.

Slower than the lean decoder, which serves fewer architectures.
"""

import inspect
import itertools
import re
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

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
from service.engine.kv_store import KVShape, KVStore
from service.engine.layout import Layout
from service.engine.model_runner import LoadedModel
from service.engine.quantized_checkpoint import QuantizedWeights
from service.engine.stored_weights import StoredWeights
from service.errors import ModelLoadError, first_line

# Layer kinds, as transformers' configs name them, whose whole state is keys and values by position.
_ATTENTION_LAYERS = {"full_attention", "sliding_attention", "attention"}

# What a tensor's name has in it that belongs to another part of a model than the one for text.
_OTHER_PARTS = re.compile(
    r"(^|[._])(vision|visual|image|audio|speech|multi_modal|projector|mm)[._]"
)

log = structlog.get_logger(__name__)

_names = (f"chatrpc-{n}" for n in itertools.count())

transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # a log is no terminal


class TransformersModel:
    """`service.engine.model_runner.Model` over transformers' modules.

    Args:
        store: as many layers as the model has, of the shapes that they use.
    """

    def __init__(self, model: PreTrainedModel, store: KVStore) -> None:
        self._model = model
        self._attention = PagedAttention(store)
        model.set_attn_implementation(_register(_AttentionFunction(self._attention)))
        # A few models compute the logits of every row whether asked to or not.
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    def forward(self, layout: Layout, rows: list[int]) -> Tensor:
        """Compute a step; see `service.engine.model_runner.Model`.

        Returns:
            The logits already, in the model's precision: its modules do not part with what comes
            before. A step's budget of tokens bounds what memory they take.
        """
        self._attention.begin_step(layout)
        index = self._tensor(rows)
        logits: Tensor = self._model(
            input_ids=self._tensor(layout.token_ids())[None],
            position_ids=self._tensor(layout.positions())[None],
            use_cache=False,
            **({"logits_to_keep": index} if self._keeps_logits else {}),
        ).logits[0]
        return logits if self._keeps_logits else logits[index]

    def logits(self, hidden: Tensor) -> Tensor:
        """Rows that `forward` returned, in float32."""
        return hidden.float()

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._model.device)


def load_transformers_model(
    path: Path, stored: QuantizedWeights | None, device: torch.device, dtype: torch.dtype
) -> LoadedModel:
    """The model in `path`, through transformers' own modules.

    Args:
        stored: how the checkpoint's weights are quantized; None: not at all.

    Raises:
        ModelLoadError: it cannot be read, is not complete, or is of a kind that is not served.
    """
    model = _read(path, stored, device, dtype)
    shapes = _probe(model)

    def finish(num_blocks: int, block_size: int, _max_model_len: int) -> TransformersModel:
        return TransformersModel(model, KVStore(shapes, num_blocks, block_size, device))

    description = {"decoder": type(model).__name__, "dtype": str(dtype).removeprefix("torch.")}
    return LoadedModel(shapes, finish, description)


def _read(
    path: Path, stored: QuantizedWeights | None, device: torch.device, dtype: torch.dtype
) -> PreTrainedModel:
    options = {
        "dtype": dtype,
        "device_map": {"": device},
        "output_loading_info": True,  # makes it a pair
        "ignore_mismatched_sizes": True,  # they are in the report, and rejected by name below
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
    except Exception as error:  # whatever a file may hold, transformers has a different error for
        reason = first_line(error)
        if kind := re.match(r"Unrecognized configuration class .*?(\w+)Config'", reason):
            reason = f"{kind[1]} is not a language model by itself, and is not served."
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
    if missing := report["missing_keys"]:  # transformers only warns, and makes up random numbers
        raise ModelLoadError(
            f"The model at {path} is not complete: it has no {min(missing)}, one of {len(missing)} "
            "tensors that are missing."
        )
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise ModelLoadError(f"{type(model).__name__} takes no position ids and is not served.")
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    kinds -= _ATTENTION_LAYERS
    if kinds:
        raise ModelLoadError(
            f"{type(model).__name__} has layers that are not served: {', '.join(sorted(kinds))}."
        )
    return model


def _check_unexpected(path: Path, names: Collection[str]) -> None:
    """Check the tensors of the checkpoint that the model has no place for.

    Raises:
        ModelLoadError: one of them belongs to a quantization or an adapter.
    """
    unread = {name for name in names if not _OTHER_PARTS.search(name)}
    reject_foreign(path, unread)
    if unread:
        log.warning("checkpoint_tensors_not_used", first=min(unread), count=len(unread))


class _LazyTensor:
    """A tensor that transformers reads once it has a place for it."""

    def __init__(self, read: Callable[[], Tensor]) -> None:
        self._read = read

    def __getitem__(self, index: Any) -> Tensor:
        return self._read()[index]


def _read_quantized(
    path: Path, stored: QuantizedWeights, device: torch.device, options: dict[str, Any]
) -> Any:
    """The model of a quantized checkpoint, and what transformers reports of loading it.

    transformers gets the weights in float32, one by one, and hears nothing of their quantization.
    """
    config: Any = AutoConfig.from_pretrained(path, local_files_only=True)
    for part in (config, config.get_text_config()):
        if hasattr(part, "quantization_config"):
            del part.quantization_config
    with torch.device("meta"):  # its class, and the part of the config that it takes
        make_model: Any = AutoModelForCausalLM.from_config  # which is not typed
        empty = make_model(config)
    weights = StoredWeights(path, device, stored)
    failures: list[ModelLoadError] = []

    def read(name: str) -> Tensor:
        try:
            return weights.read(name)
        except ModelLoadError as error:  # transformers would make a report of its own of it
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
    """Check that no weight is stored as numbers that transformers would cast without a scale.

    Raises:
        ModelLoadError: there is such a weight. The message names it.
    """
    for name, file in open_tensors(path).items():
        dtype: str = file.get_slice(name).get_dtype()
        is_weight = name.endswith(("weight", "_proj", "_packed", "_blocks"))
        if dtype.startswith(("F8", "F4", "F6", "I8")) or (
            is_weight and not dtype.startswith(("F", "BF"))
        ):
            raise unusable_weight(path, name, dtype)


@torch.inference_mode()
def _probe(model: PreTrainedModel) -> list[KVShape]:
    """The keys and values of each layer, learnt by running one token through the model."""
    shapes = ShapeProbe()
    try:
        model.set_attn_implementation(_register(shapes))
        token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        model(input_ids=token, position_ids=token, use_cache=False)
    except ModelLoadError:
        raise
    except Exception as error:  # the model's own code, called in a way that it may not expect
        raise ModelLoadError(
            f"{type(model).__name__} is not served: {first_line(error)}"
        ) from error
    if sorted(shapes.shapes) != list(range(model.config.get_text_config().num_hidden_layers)):
        raise ModelLoadError(
            f"{type(model).__name__} is not served: not all of its layers attend through "
            "transformers' attention interface."
        )
    if any(
        shapes.windows[layer] is None for layer in _sliding_layers(model.config.get_text_config())
    ):
        raise ModelLoadError(
            f"{type(model).__name__} is not served: its sliding window is known to its mask alone."
        )
    return [shapes.shapes[layer] for layer in sorted(shapes.shapes)]


def _sliding_layers(config: PreTrainedConfig) -> list[int]:
    """The layers that see a sliding window, by the model's config."""
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        has_window = getattr(config, "sliding_window", None) is not None
        return list(range(config.num_hidden_layers)) if has_window else []
    return [layer for layer, kind in enumerate(kinds) if kind == "sliding_attention"]


class _AttentionFunction:
    """What transformers' modules call for their attention."""

    def __init__(self, attention: PagedAttention) -> None:
        self._attention = attention

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,  # noqa: ARG002  # the batch says what each token sees
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **_: object,
    ) -> tuple[Tensor, None]:
        """Attend with `query` [1, num_heads, T, dim], `key` and `value` [1, num_kv_heads, T, dim].

        Returns:
            [1, T, num_heads, value_dim], and no weights.
        """
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        attended = self._attention.attend(
            _layer_index(module), query[0], key[0], value[0], scale, sliding_window, softcap
        )
        return attended[None], None


# What transformers' modules tell an attention function that ours obeys or need not know.
_UNDERSTOOD = {
    "scaling",
    "sliding_window",
    "softcap",
    "is_causal",
    "dropout",  # 0 but in training
    "position_ids",  # those that the runner gave
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "return_dict",
}


class ShapeProbe:
    """An attention function that attends to nothing and records what each layer tells it: the
    shapes of its keys and values, its sliding window."""

    def __init__(self) -> None:
        self.shapes: dict[int, KVShape] = {}
        self.windows: dict[int, object] = {}

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: object,
    ) -> tuple[Tensor, None]:
        """Raises ModelLoadError for a kind of attention that is not served."""
        layer, kind = _layer_index(module), type(module).__name__
        for name, value_given in (kwargs | {"attention_mask": attention_mask}).items():
            if value_given is not None and name not in _UNDERSTOOD:
                raise ModelLoadError(f"{kind} attends with {name}, which is not served.")
        if False in (kwargs.get("is_causal"), getattr(module, "is_causal", None)):
            raise ModelLoadError(f"{kind} sees the tokens to come, which is not served.")
        if layer in self.shapes:
            raise ModelLoadError(f"{kind} attends more than once a layer, which is not served.")
        self.windows[layer] = kwargs.get("sliding_window")
        self.shapes[layer] = KVShape(key.shape[1], key.shape[-1], value.shape[-1], key.dtype)
        return value.new_zeros(1, query.shape[2], query.shape[1], value.shape[-1]), None


def _layer_index(module: nn.Module) -> int:
    """The layer that an attention module of transformers belongs to.

    Raises:
        ModelLoadError: it does not say.
    """
    index = getattr(module, "layer_idx", None)
    if not isinstance(index, int):
        raise ModelLoadError(f"{type(module).__name__} does not say which layer it is.")
    return index


def _register(function: Callable[..., tuple[Tensor, None]]) -> str:
    """Make `function` an attention implementation of transformers, under a name of its own: the
    registry is global and models are not."""
    name = next(_names)
    AttentionInterface.register(name, function)
    return name
