"""Reads the task, the pooling, the prompts and the labels of a checkpoint. No torch.

The files are those of sentence_transformers (https://sbert.net): modules.json, a config.json for
each module, sentence_bert_config.json and config_sentence_transformers.json. A checkpoint without
them is described by its config.json.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.domain.pooling import Activation, Task
from service.errors import ModelLoadError
from service.json_file import read_json_array, read_json_object

# The modes of pooling, in the order in which the results of several are joined, by the names of the
# older form of the config.
_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# Models of these types count positions from the padding token's id plus 1.
_SHIFTED_POSITIONS = frozenset(
    (
        "camembert",
        "mpnet",
        "roberta",
        "xlm-roberta",
        "xlm-roberta-xl",
        "data2vec-text",
        "longformer",
    )
)
_CLASSIFIER = "ForSequenceClassification"
_CAUSAL = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
# torch's activations of a dense module, by the class that the config names.
_DENSE_ACTIVATIONS = {
    "Identity": "identity",
    "Tanh": "tanh",
    "ReLU": "relu",
    "GELU": "gelu",
    "SiLU": "silu",
    "Sigmoid": "sigmoid",
}
_SCORE_ACTIVATIONS = {
    "Sigmoid": Activation.SIGMOID,
    "Identity": Activation.NONE,
    "Softmax": Activation.SOFTMAX,
}


@dataclass(frozen=True, slots=True)
class Pooling:
    """Makes one vector of those of all tokens.

    Attributes:
        modes: The results of several modes are joined.
        includes_prompt: False if the tokens of the prompt are left out.
    """

    modes: tuple[str, ...] = ("mean",)
    includes_prompt: bool = True


@dataclass(frozen=True, slots=True)
class Dense:
    """A linear layer with an activation, whose weights are in `directory`."""

    directory: Path
    activation: str
    has_bias: bool
    has_residual: bool


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """A layer norm, whose weights are in `directory`."""

    directory: Path


@dataclass(frozen=True, slots=True)
class Normalize:
    """Scales a vector to the length 1."""


Module = Dense | LayerNorm | Normalize


@dataclass(frozen=True, slots=True)
class EmbeddingModules:
    """The modules after the transformer of an embedding model, and its prompts.

    Attributes:
        modules: The modules after pooling, without a `Normalize` at the end.
        normalizes: True if there is a `Normalize` at the end.
        prompts: Prompts by their names.
        default_prompt: The name of the prompt of requests that name none; None if there is none.
        dimensions: The numbers of dimensions that embeddings may be shortened to; empty means all.
        lowercases: True if texts are made lower case.
    """

    pooling: Pooling
    modules: tuple[Module, ...]
    normalizes: bool
    prompts: Mapping[str, str]
    default_prompt: str | None
    dimensions: tuple[int, ...]
    lowercases: bool


@dataclass(frozen=True, slots=True)
class ClassifierHead:
    """The labels of a classifier, in the order of its scores, and its own activation."""

    labels: tuple[str, ...]
    activation: Activation


def find_task(path: Path) -> Task:
    """Return the task of the checkpoint in the directory `path`.

    A classifier with one label is a cross-encoder, which scores pairs.

    Raises:
        ModelLoadError: A file cannot be read.
    """
    if (path / "modules.json").is_file() and not _is_cross_encoder(path):
        return Task.EMBED
    config = read_json_object(path / "config.json")
    architecture = _architecture(config)
    if architecture.endswith(_CLASSIFIER):
        return Task.SCORE if len(_labels(config)) == 1 else Task.CLASSIFY
    # A model without a head computes hidden states, and so does one whose head fills in masks.
    if architecture.endswith(
        ("Model", "ForMaskedLM", "ForPreTraining")
    ) and not architecture.endswith(_CAUSAL):
        return Task.EMBED
    return Task.GENERATE


def check_task(path: Path, task: Task) -> None:
    """Check that a checkpoint can serve a task other than generation.

    Raises:
        ModelLoadError: It cannot.
    """
    config = read_json_object(path / "config.json")
    is_classifier = _architecture(config).endswith(_CLASSIFIER)
    if task in (Task.CLASSIFY, Task.SCORE) and not is_classifier:
        raise ModelLoadError(
            f"{path} cannot serve task={task.value}: its config.json names no model "
            f"{_CLASSIFIER.removeprefix('For')}, such as BertForSequenceClassification."
        )
    if task is Task.SCORE and len(_labels(config)) != 1:
        raise ModelLoadError(
            f"{path} cannot serve task=score: it has {len(_labels(config))} labels, and a model "
            "that scores pairs has one."
        )
    if task is Task.EMBED and is_classifier:
        raise ModelLoadError(f"{path} cannot serve task=embed: it is a classifier.")


def embedding_modules(path: Path) -> EmbeddingModules:
    """Return what follows the transformer of the embedding model in the directory `path`.

    Without modules.json it is the mean of all tokens, as in sentence_transformers, or for a causal
    language model its last token with the length 1.

    Raises:
        ModelLoadError: A module is not supported, or a file cannot be read.
    """
    settings = read_json_object(path / "config_sentence_transformers.json")
    text = read_json_object(path / "sentence_bert_config.json")
    config = read_json_object(path / "config.json")
    pooling, modules = _modules(path, config)
    normalizes = bool(modules) and isinstance(modules[-1], Normalize)
    prompts = {
        name: prompt
        for name, prompt in (settings.get("prompts") or {}).items()
        if isinstance(name, str) and isinstance(prompt, str)
    }
    default = settings.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise ModelLoadError(f"{path} has a default_prompt_name {default!r} without a prompt.")
    dimensions = config.get("matryoshka_dimensions") or ()
    return EmbeddingModules(
        pooling,
        tuple(modules[:-1] if normalizes else modules),
        normalizes,
        prompts,
        default,
        tuple(sorted(each for each in dimensions if isinstance(each, int))),
        text.get("do_lower_case") is True,
    )


def classifier_head(path: Path) -> ClassifierHead:
    """Return the labels and the activation of the classifier in the directory `path`.

    The activation is that of sentence_transformers' cross-encoders, if the config names one. Else
    it follows `problem_type`, or the number of labels: as in transformers' pipelines, one label has
    the logistic function, and several have softmax.

    Raises:
        ModelLoadError: The activation or a module is not supported.
    """
    config = read_json_object(path / "config.json")
    settings = read_json_object(path / "config_sentence_transformers.json")
    if settings.get("default_prompt_name") is not None:
        raise ModelLoadError(f"{path} is a cross-encoder with a prompt, which is not supported.")
    for module in _listed_modules(path)[1:]:
        raise ModelLoadError(f"{path} has a module {_class_name(module)}, which is not supported.")
    labels = _labels(config)
    named = (
        settings.get("activation_fn")
        or (config.get("sentence_transformers") or {}).get("activation_fn")
        or config.get("sbert_ce_default_activation_function")
    )
    if named is not None:
        activation = _SCORE_ACTIVATIONS.get(str(named).rpartition(".")[2])
        if activation is None:
            raise ModelLoadError(f"{path} has the activation {named}, which is not supported.")
        return ClassifierHead(labels, activation)
    problem = config.get("problem_type")
    if problem == "regression":
        return ClassifierHead(labels, Activation.NONE)
    is_single = len(labels) == 1 or problem == "multi_label_classification"
    return ClassifierHead(labels, Activation.SIGMOID if is_single else Activation.SOFTMAX)


def reads_type_ids(path: Path) -> bool:
    """Return True if the model gets the number of the text of a pair that each token belongs to.

    transformers' tokenizers return these numbers if `model_input_names` has them. The tokenizers of
    no particular model have them only if the file names them.
    """
    config = read_json_object(path / "tokenizer_config.json")
    names = config.get("model_input_names")
    if isinstance(names, list):
        return "token_type_ids" in names
    return config.get("tokenizer_class") not in ("PreTrainedTokenizerFast", "TokenizersBackend")


def max_input_tokens(path: Path, limit: int | None) -> int:
    """Return the maximum number of tokens of an input, with its special tokens.

    Args:
        limit: The operator's maximum; None if there is none.

    Raises:
        ModelLoadError: The checkpoint allows fewer tokens than `limit`, or states no maximum.
    """
    config = read_json_object(path / "config.json")
    config = config.get("text_config") or config
    numbers: list[Any] = [
        read_json_object(path / "sentence_bert_config.json").get("max_seq_length"),
        read_json_object(path / "tokenizer_config.json").get("model_max_length"),
    ]
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int) and config.get("model_type") in _SHIFTED_POSITIONS:
        positions -= (config.get("pad_token_id") or 0) + 1
    # A config of relative positions has -1 or no number, and a tokenizer without a maximum 1e30.
    most = [each for each in (*numbers, positions) if isinstance(each, int) and 0 < each < 2**31]
    if not most and limit is None:
        raise ModelLoadError(f"{path} states no maximum number of tokens. Set max_model_len.")
    own = min(most, default=limit or 0)
    if limit is not None and limit > own:
        raise ModelLoadError(
            f"max_model_len is {limit}, but the maximum length of the model is {own} tokens."
        )
    return own if limit is None else limit


def _modules(path: Path, config: Mapping[str, Any]) -> tuple[Pooling, list[Module]]:
    listed = _listed_modules(path)
    if not listed:
        is_causal = _architecture(config).endswith(_CAUSAL)
        return (Pooling(("lasttoken",)), [Normalize()]) if is_causal else (Pooling(), [])
    pooling: Pooling | None = None
    modules: list[Module] = []
    for index, module in enumerate(listed):
        name = _class_name(module)
        directory = path / str(module.get("path") or "")
        if index == 0 and name == "Transformer" and directory == path:
            continue
        if name == "Pooling" and index == 1:
            pooling = _pooling(directory)
        elif name == "Normalize" and pooling is not None:
            modules.append(Normalize())
        elif name == "Dense" and pooling is not None:
            modules.append(_dense(directory))
        elif name == "LayerNorm" and pooling is not None:
            modules.append(LayerNorm(directory))
        elif name != "Dropout" or pooling is None:  # dropout has no effect outside of training
            raise ModelLoadError(
                f"{path / 'modules.json'} has {name} as module {index}, which is not supported."
            )
    if pooling is None:
        raise ModelLoadError(f"{path / 'modules.json'} has no module Pooling.")
    return pooling, modules


def _pooling(directory: Path) -> Pooling:
    config = read_json_object(directory / "config.json")
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for name, mode in _MODES.items() if config.get(name)] or ["mean"]
    modes = (modes,) if isinstance(modes, str) else tuple(modes)
    for mode in modes:
        if mode not in _MODES.values():
            raise ModelLoadError(f"{directory} has the pooling mode {mode!r}, which is unknown.")
    return Pooling(modes, config.get("include_prompt") is not False)


def _dense(directory: Path) -> Dense:
    config = read_json_object(directory / "config.json")
    named = str(config.get("activation_function") or "torch.nn.modules.activation.Tanh")
    activation = _DENSE_ACTIVATIONS.get(named.rpartition(".")[2])
    if activation is None:
        raise ModelLoadError(f"{directory} has the activation {named}, which is not supported.")
    for name in ("module_input_name", "module_output_name"):
        if config.get(name) not in (None, "sentence_embedding"):
            raise ModelLoadError(f"{directory} has {name}={config[name]}, which is not supported.")
    return Dense(
        directory, activation, config.get("bias") is not False, config.get("use_residual") is True
    )


def _listed_modules(path: Path) -> list[Mapping[str, Any]]:
    """Return the entries of modules.json; none if there is no such file.

    Raises:
        ModelLoadError: It is not a list of objects.
    """
    modules = read_json_array(path / "modules.json")
    if not all(isinstance(module, dict) for module in modules):
        raise ModelLoadError(f"{path / 'modules.json'} is not a list of modules.")
    return modules


def _class_name(module: Mapping[str, Any]) -> str:
    return str(module.get("type")).rpartition(".")[2]


def _is_cross_encoder(path: Path) -> bool:
    settings = read_json_object(path / "config_sentence_transformers.json")
    return settings.get("model_type") == "CrossEncoder"


def _architecture(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


def _labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the labels by their ids. transformers' default is two labels."""
    names = config.get("id2label")
    if not isinstance(names, dict) or not names:
        number = config.get("num_labels", 2)
        return tuple(f"LABEL_{i}" for i in range(number if isinstance(number, int) else 2))
    try:
        return tuple(str(names[key]) for key in sorted(names, key=int))
    except ValueError as error:
        raise ModelLoadError("config.json has an id2label whose keys are not numbers.") from error
