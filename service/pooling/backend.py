"""The backends of a pooling model in this process: embeddings, classification, scores of pairs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.domain.backend import BackendLoad, CallContext, ModelSpec
from service.domain.embeddings import EmbeddingRequest, Embeddings
from service.domain.engine import Caller
from service.domain.model import Tokenizer
from service.domain.pooling import (
    Activation,
    ClassificationRequest,
    Classifications,
    ScoreRequest,
    Scores,
)
from service.domain.sampling import SamplingParams
from service.errors import InvalidField, UnsupportedField
from service.pooling.batch import TokenizedInput
from service.pooling.checkpoint import ClassifierHead, EmbeddingModules
from service.pooling.engine import PoolingEngine
from service.pooling.tokenization import InputTokenizer

_Array = NDArray[np.float32]

# The names of the prompts of a query and of a document, in the order in which they are looked up,
# as in sentence_transformers' encode_query and encode_document.
_QUERY_PROMPTS = ("query",)
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")
# The least length of a vector that is divided by its length, as in torch's `normalize`.
_EPSILON = 1e-12


class PoolingBackend:
    """`service.domain.backend.ModelBackend` of a model that does not generate.

    Args:
        tokenizer: The tokenizer of Tokenize and Detokenize.
        max_input_tokens: Maximum number of tokens of an input.
        vocab_size: Number of token ids of the model.
    """

    def __init__(
        self, engine: PoolingEngine, tokenizer: Tokenizer, max_input_tokens: int, vocab_size: int
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._max_input_tokens = max_input_tokens
        self._vocab_size = vocab_size

    @property
    def spec(self) -> ModelSpec:
        return ModelSpec(
            self._max_input_tokens,
            self._engine.capacity,
            SamplingParams(),
            self._vocab_size,
            self._tokenizer.max_token_chars,
        )

    @property
    def tokenizer(self) -> Tokenizer:
        return self._tokenizer

    def load(self) -> BackendLoad:
        stats = self._engine.stats()
        return BackendLoad(stats.num_running + stats.num_waiting, stats.max_num_seqs)

    def reserve(self, caller: Caller, num_sequences: int) -> AbstractContextManager[None]:
        return self._engine.reserve(caller, num_sequences)


class LocalEmbeddings:
    """`service.domain.backend.EmbeddingBackend` and `ScoreBackend` of an embedding model.

    The score of a pair is the cosine of the embeddings of its texts. If the model has prompts for
    queries and documents, they are used.
    """

    unsupported_fields: frozenset[str] = frozenset()
    has_activation = False

    def __init__(
        self, engine: PoolingEngine, tokenizer: InputTokenizer, modules: EmbeddingModules
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._modules = modules

    @property
    def num_dimensions(self) -> int:
        return self._engine.num_outputs

    @property
    def prompt_names(self) -> Sequence[str]:
        return sorted(self._modules.prompts)

    async def embed(self, request: EmbeddingRequest, call: CallContext) -> Embeddings:
        """See `service.domain.backend.EmbeddingBackend.embed`."""
        self._check_dimensions(request.dimensions)
        is_text = isinstance(request.inputs[0], str)
        inputs = await call.workers.text(
            lambda: self._tokenizer.tokenized(
                request.inputs,
                request.inputs_field,
                truncation=request.truncation,
                add_special_tokens=request.add_special_tokens,
                prompt=self._prompt(request.prompt_name, is_text=is_text),
                skips_prompt=not self._modules.pooling.includes_prompt,
            )
        )
        vectors = await self._engine.run(inputs, call)
        normalizes = self._modules.normalizes if request.normalize is None else request.normalize
        finished = await call.workers.text(_embeddings, vectors, request.dimensions, normalizes)
        return Embeddings(finished, _num_tokens(inputs))

    async def score(self, request: ScoreRequest, call: CallContext) -> Scores:
        """See `service.domain.backend.ScoreBackend.score`."""
        queries = tuple(pair.query for pair in request.pairs)
        documents = tuple(pair.document for pair in request.pairs)

        def tokenized() -> tuple[list[TokenizedInput], list[TokenizedInput]]:
            return (
                self._texts(queries, request, None, _QUERY_PROMPTS),
                self._texts(documents, request, request.max_tokens_per_document, _DOCUMENT_PROMPTS),
            )

        of_queries, of_documents = await call.workers.text(tokenized)
        # The query of a rerank is the same in all pairs, and is computed once.
        once = dict(zip(queries, of_queries, strict=True))
        numbers = {query: i for i, query in enumerate(once)}
        vectors = await self._engine.run([*once.values(), *of_documents], call)
        scores = await call.workers.text(
            _cosines, vectors, [numbers[query] for query in queries], len(once)
        )
        return Scores(scores, _num_tokens(of_queries) + _num_tokens(of_documents))

    def _texts(
        self,
        texts: tuple[str, ...],
        request: ScoreRequest,
        max_tokens_per_document: int | None,
        names: Sequence[str],
    ) -> list[TokenizedInput]:
        prompts = self._modules.prompts
        name = next((name for name in names if name in prompts), self._modules.default_prompt)
        return self._tokenizer.tokenized(
            texts,
            request.inputs_field,
            truncation=request.truncation,
            prompt="" if name is None else prompts[name],
            skips_prompt=not self._modules.pooling.includes_prompt,
            max_tokens_per_document=max_tokens_per_document,
        )

    def _prompt(self, name: str | None, *, is_text: bool) -> str:
        """Return the prompt of a request.

        Raises:
            InvalidField: The model has no prompt with this name.
            UnsupportedField: A request with token ids names a prompt.
        """
        if name is None:
            default = self._modules.default_prompt
            return "" if default is None or not is_text else self._modules.prompts[default]
        if not is_text:
            raise UnsupportedField("prompt_name", "cannot be used with token ids.")
        if name not in self._modules.prompts:
            known = ", ".join(self.prompt_names) or "none"
            raise InvalidField(
                "prompt_name", f"This model has no prompt {name!r}. Its prompts are: {known}."
            )
        return self._modules.prompts[name]

    def _check_dimensions(self, number: int | None) -> None:
        """Check a number of dimensions. Embeddings are shortened to their first numbers, which
        models are trained for with Matryoshka representation learning (arXiv 2205.13147).

        Raises:
            InvalidField: The model has fewer dimensions, or lists other numbers.
        """
        if number is None or number == self.num_dimensions:
            return
        if number > self.num_dimensions:
            raise InvalidField(
                "dimensions",
                f"The embeddings of this model have {self.num_dimensions} dimensions, fewer than "
                f"{number}.",
            )
        listed = self._modules.dimensions
        if listed and number not in listed:
            raise InvalidField(
                "dimensions",
                f"This model can shorten its embeddings to {_listed(listed)} dimensions, not "
                f"{number}.",
            )


class LocalClassifier:
    """`service.domain.backend.ClassificationBackend` and `ScoreBackend` of a classifier."""

    has_activation = True

    def __init__(
        self, engine: PoolingEngine, tokenizer: InputTokenizer, head: ClassifierHead
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._head = head

    @property
    def labels(self) -> Sequence[str]:
        return self._head.labels

    async def classify(self, request: ClassificationRequest, call: CallContext) -> Classifications:
        """See `service.domain.backend.ClassificationBackend.classify`."""
        inputs = await call.workers.text(
            lambda: self._tokenizer.tokenized(
                request.inputs,
                request.inputs_field,
                truncation=request.truncation,
                add_special_tokens=request.add_special_tokens,
            )
        )
        scores = await self._scores(inputs, request.activation, call)
        return Classifications(scores, _num_tokens(inputs))

    async def score(self, request: ScoreRequest, call: CallContext) -> Scores:
        """See `service.domain.backend.ScoreBackend.score`."""
        inputs = await call.workers.text(
            lambda: self._tokenizer.tokenized(
                request.pairs,
                request.inputs_field,
                truncation=request.truncation,
                max_tokens_per_document=request.max_tokens_per_document,
            )
        )
        scores = await self._scores(inputs, request.activation, call)
        return Scores([score for [score] in scores], _num_tokens(inputs))

    async def _scores(
        self, inputs: Sequence[TokenizedInput], activation: Activation, call: CallContext
    ) -> list[list[float]]:
        numbers = await self._engine.run(inputs, call)
        chosen = self._head.activation if activation is Activation.MODEL else activation
        return await call.workers.text(lambda: _ACTIVATIONS[chosen](np.stack(numbers)).tolist())


def _sigmoid(logits: _Array) -> _Array:
    # Both branches of `where` are computed, and neither overflows.
    small = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1 / (1 + small), small / (1 + small))


def _softmax(logits: _Array) -> _Array:
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(-1, keepdims=True))


_ACTIVATIONS: Mapping[Activation, Callable[[_Array], _Array]] = {
    Activation.NONE: lambda logits: logits,
    Activation.SOFTMAX: _softmax,
    Activation.SIGMOID: _sigmoid,
}


def _embeddings(vectors: Sequence[_Array], dimensions: int | None, normalizes: bool) -> list[Any]:
    """Return vectors with fewer dimensions, and with the length 1 if `normalizes`."""
    stacked = np.stack(vectors)[:, :dimensions]
    return list((_normalized(stacked) if normalizes else stacked).tolist())


def _cosines(vectors: Sequence[_Array], numbers: Sequence[int], num_queries: int) -> list[float]:
    """Return the cosine of each document and its query.

    Args:
        vectors: Those of the queries, then those of the documents.
        numbers: The number of the query of each document.
    """
    stacked = _normalized(np.stack(vectors))
    queries, documents = stacked[:num_queries], stacked[num_queries:]
    cosines: list[float] = (queries[list(numbers)] * documents).sum(-1).tolist()
    return cosines


def _normalized(vectors: _Array) -> _Array:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, _EPSILON))


def _num_tokens(inputs: Iterable[TokenizedInput]) -> int:
    return sum(map(len, inputs))


def _listed(numbers: Sequence[int]) -> str:
    *others, last = map(str, numbers)
    return f"{', '.join(others)} or {last}" if others else last
