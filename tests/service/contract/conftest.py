"""The engines under test, and the model that all of them load."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import safetensors.torch
import torch
import transformers

from service.domain.engine import Engine
from service.domain.engine_settings import EngineModel
from service.text.grammars import CompiledGrammars, load_token_trie
from service.text.hf_tokenizer import HfTokenizer, load_tokenizer
from tests.service.contract.kinds import KINDS, Kind
from tests.service.contract.promises import END, MAX_MODEL_LEN, TIED, VOCAB_SIZE, Definition
from tests.support.reference_model import ReferenceModel
from tests.support.tiny_model import save_model


@pytest.fixture(scope="session")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a tiny model. Its weights are so large that tokens differ in likelihood."""
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.manual_seed(0)
    path = save_model(
        tmp_path_factory.mktemp("model"),
        VOCAB_SIZE,
        hidden_size=64,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.25,
        eos_token_id=END,
    )
    file = path / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    for token_id, equal in TIED.items():
        weights["lm_head.weight"][token_id] = weights["lm_head.weight"][equal]
    safetensors.torch.save_file(weights, file, {"format": "pt"})
    return path


@pytest.fixture(scope="session")
def model(path: Path) -> EngineModel:
    return EngineModel(path)


@pytest.fixture(scope="session")
def definition(path: Path) -> Definition:
    return Definition(ReferenceModel(path))


@pytest.fixture(scope="session")
def tokenizer(path: Path) -> HfTokenizer:
    return load_tokenizer(path)


@pytest.fixture(scope="session")
def grammars(tokenizer: HfTokenizer) -> CompiledGrammars:
    trie = load_token_trie(tokenizer.to_json(), VOCAB_SIZE, [END])
    return CompiledGrammars(trie, tokenizer.added_token_ids)


@pytest.fixture(scope="session", params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    kind: Kind = request.param
    return kind


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def engine(kind: Kind, model: EngineModel) -> AsyncIterator[Engine]:
    """An engine with eight slots and a long queue."""
    engine = kind.make(max_model_len=MAX_MODEL_LEN, max_num_seqs=8, max_queue_size=300)
    await engine.start(model)
    yield engine
    assert await engine.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def narrow(kind: Kind, model: EngineModel) -> AsyncIterator[Engine]:
    """An engine that runs one sequence at a time, and has a queue of eight."""
    engine = kind.make(max_model_len=4096, max_num_seqs=1, max_queue_size=8)
    await engine.start(model)
    yield engine
    assert await engine.stop()
