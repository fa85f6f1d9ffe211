"""The transformer of an embedding model: hidden states of packed inputs, through transformers."""

import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import structlog
import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from service.errors import ModelLoadError, first_line
from service.pooling.batch import Group, PackedBatch, TokenizedInput, packed
from service.pooling.packed_attention import PackedAttention, register

# The largest difference between hidden states of inputs computed together and separately, relative
# to the largest number, at which a model is taken to support packed inputs. Other ways of computing
# positions or masks differ by more than 0.01.
_TOLERANCE = 1e-3
# The lengths of the inputs with which this is checked.
_PROBE_LENGTHS = (7, 12)
# A sliding window that is longer than this is not reached by the check.
_MAX_PROBE_WINDOW = 512

log = structlog.get_logger(__name__)


class Transformer:
    """Computes hidden states of inputs that do not influence one another.

    If the model computes attention through transformers' interface, all inputs are one row without
    padding (packed). Else inputs of equal length are computed together. So there is no padding in
    either case.

    Attributes:
        is_packed: True if all inputs of a batch are computed as one row.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._attention = PackedAttention()
        self._first_position = 0
        parameters = inspect.signature(model.forward).parameters
        self._takes_types = "token_type_ids" in parameters
        self._options = {"use_cache": False} if "use_cache" in parameters else {}
        self.is_packed = self._supports_packed()

    def hidden_states(self, batch: PackedBatch) -> Iterator[tuple[Group, Tensor]]:
        """Yield each group with the hidden states of its inputs, [size, length, num_dimensions]."""
        if not self.is_packed:
            for group in batch.groups:
                yield group, self._equal(batch.of_group(group))
            return
        states = self._packed(batch)
        for group in batch.groups:
            end = group.start + group.size * group.length
            yield group, states[group.start : end].view(group.size, group.length, -1)

    def _packed(self, batch: PackedBatch) -> Tensor:
        """Return the hidden states of all tokens, [T, num_dimensions]."""
        self._attention.groups = tuple(batch.groups)
        ids = [token_id for each in batch.inputs for token_id in each.token_ids]
        first = self._first_position
        positions = [i for each in batch.inputs for i in range(first, first + len(each))]
        device = self._model.device
        fields: dict[str, Tensor] = {
            "input_ids": torch.tensor([ids], device=device),
            "position_ids": torch.tensor([positions], device=device),
        }
        if self._takes_types:
            fields["token_type_ids"] = torch.zeros_like(fields["input_ids"])
        states: Tensor = self._model(**fields, **self._options).last_hidden_state[0]
        return states

    def _equal(self, inputs: Sequence[TokenizedInput]) -> Tensor:
        """Return the hidden states of inputs of equal length, [size, length, num_dimensions]."""
        ids = torch.tensor([list(each.token_ids) for each in inputs], device=self._model.device)
        mask = torch.ones_like(ids)
        states: Tensor = self._model(
            input_ids=ids, attention_mask=mask, **self._options
        ).last_hidden_state
        return states

    def _supports_packed(self) -> bool:
        """Return True if packed inputs have the hidden states that each has by itself.

        It selects the model's attention and the number of the first position.
        """
        model = self._model
        if "position_ids" not in inspect.signature(model.forward).parameters:
            return False
        own = model.config._attn_implementation
        batch = packed(list(self._probes()))
        expected = torch.cat([self._equal([each])[0] for each in batch.inputs])
        padding = getattr(model.config, "pad_token_id", None)
        try:
            model.set_attn_implementation(register(self._attention))
            for self._first_position in (0, *([padding + 1] if isinstance(padding, int) else ())):
                self._attention.num_calls = 0
                states = self._packed(batch)
                error = (states - expected).abs().max() / expected.abs().max().clamp(min=1e-9)
                if self._attention.num_calls and error < _TOLERANCE * _scale(states.dtype):
                    return True
        except Exception as error:  # models differ in what they take
            log.debug("packed_inputs_not_supported", reason=first_line(error))
        model.set_attn_implementation(own)
        return False

    def _probes(self) -> Iterator[TokenizedInput]:
        config = self._model.config.get_text_config()
        window = getattr(config, "sliding_window", None)
        lengths = list(_PROBE_LENGTHS)
        if isinstance(window, int) and window <= _MAX_PROBE_WINDOW:
            lengths.append(window + 3)
        size = int(config.vocab_size)
        for length in lengths:
            # Ids in the middle of the vocabulary are hardly special tokens.
            yield TokenizedInput([(size // 3 + 7 * i) % max(1, size - 1) for i in range(length)])


def load_transformer(path: Path, device: torch.device, dtype: torch.dtype) -> Transformer:
    """Load the model in the directory `path`, without a head.

    Raises:
        ModelLoadError: The model cannot be read, or is not complete.
    """
    model = read_model(AutoModel, path, device, dtype, ignored=("pooler", "lm_head", "cls"))
    with torch.inference_mode():
        return Transformer(model)


def read_model(
    kind: Any, path: Path, device: torch.device, dtype: torch.dtype, ignored: tuple[str, ...] = ()
) -> PreTrainedModel:
    """Read a model through a class of transformers such as `AutoModel`.

    Args:
        ignored: Parts of the model whose weights may be missing.

    Raises:
        ModelLoadError: The model cannot be read, or is not complete.
    """
    try:
        model, report = kind.from_pretrained(
            path,
            local_files_only=True,
            dtype=dtype,
            device_map={"": device},
            output_loading_info=True,  # the result is a pair
            ignore_mismatched_sizes=True,  # the report lists them, and they are rejected below
        )
    except Exception as error:  # transformers raises many kinds of errors for invalid files
        raise ModelLoadError(
            f"The model at {path} cannot be loaded: {first_line(error)}"
        ) from error
    if mismatched := report["mismatched_keys"]:
        name, stored_shape, shape = min(mismatched)
        raise ModelLoadError(
            f"The model at {path} cannot be loaded: {name} has the shape {list(stored_shape)} "
            f"where its config makes it {list(shape)}."
        )
    missing = [name for name in report["missing_keys"] if not set(name.split(".")) & {*ignored}]
    if missing:  # transformers warns, and fills them with random numbers
        raise ModelLoadError(
            f"The model at {path} is not complete: it has no {min(missing)}, one of {len(missing)} "
            "tensors that are missing."
        )
    read: PreTrainedModel = model.eval()
    return read


def _scale(dtype: torch.dtype) -> float:
    """Return how much larger rounding errors are than in float32."""
    return 1.0 if dtype == torch.float32 else 50.0
