"""What is loaded is what was meant: checkpoints, tokenizers, adapters and GGUF files as people have them."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.base.errors import UserError
from harness.models import HF
from harness.models.loading import unlike
from harness.models.making import made
from harness.store.cache import Cache
from harness.sweep.deep_checks import find_problems
from harness.tasks.arithmetic import Arithmetic
from tests.toys import build_model, conversational_rows, write_jsonl


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("sound") / "model", "llama")


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def problems(tmp_path: Path, compose: Any) -> Callable[..., list[UserError]]:
    """What is said of a model before a trial on it begins."""
    data = write_jsonl(tmp_path / "prefs.jsonl", conversational_rows(30))

    def ask(folder: Path, *more: str) -> list[UserError]:
        plain = compose("model=hf", f"model.path={folder}", "task=preferences", f"task.path={data}",
                        f"+cache.dir={tmp_path / 'cache'}", *more)  # fmt: skip
        return find_problems(plain)

    return ask


def rewrite(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def configure(folder: Path, name: str, **values: Any) -> None:
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def only(found: list[UserError]) -> UserError:
    assert len(found) == 1, "\n".join(map(str, found))
    return found[0]


def test_a_sound_model_has_no_problem_at_the_default_lengths(folder, problems):
    assert problems(folder) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: {f"_orig_mod.{k}": v for k, v in s.items()}, ("weights are missing", "_orig_mod.")),
        (lambda s: {k: v for k, v in s.items() if "layers.1.mlp" not in k}, ("3 weights are missing", "layers.1.mlp")),
        (lambda s: s | {"v_head.weight": torch.zeros(1, 32)}, ("1 weights are not the model's", "v_head.weight")),
        (lambda s: s | {"model.norm.weight": torch.ones(7)}, ("have another shape", "model.norm.weight")),
    ],
    ids=["wrapped", "missing", "unexpected", "shape"],
)
def test_a_checkpoint_of_another_model_is_refused_by_the_names_of_its_weights(folder, problems, change, words):
    rewrite(folder, change)
    error = only(problems(folder))
    assert error.key == "model.path" and all(w in error.rule for w in words)
    with pytest.raises(UserError, match=words[0]):
        HF(path=str(folder)).load(None, dtype=torch.float32, device="cpu")


def test_tied_embeddings_miss_no_output_head(tmp_path, problems):
    from transformers import AutoModelForCausalLM

    folder = build_model(tmp_path / "tied", "llama")
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(folder)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    assert problems(folder) == []
    assert unlike({"missing_keys": [], "unexpected_keys": set(), "mismatched_keys": []}) is None


def test_a_file_that_was_cut_is_refused_with_the_librarys_words(folder, problems):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    error = only(problems(folder))
    assert "SafetensorError" in error.rule and "incomplete metadata" in error.rule


def test_a_pointer_of_git_lfs_is_refused(folder, problems):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    error = only(problems(folder))
    assert "model.safetensors: a pointer of git-lfs" in error.rule and "git lfs pull" in str(error.fix)


def test_a_package_that_the_quantization_needs_is_named(folder, problems):
    configure(folder, "config.json", quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 32})
    error = only(problems(folder))
    assert "ImportError" in error.rule and "optimum" in error.rule


def test_a_tokenizer_without_its_file_is_refused(folder, problems):
    (folder / "tokenizer.json").unlink()
    configure(folder, "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    error = only(problems(folder))
    assert "tokenizer" in error.rule and "tokenizer.json" in f"{error.rule} {error.fix}"


def test_a_token_beyond_the_embedding_matrix_is_refused_with_both_sizes(folder, problems):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    tokenizer.add_special_tokens({"pad_token": "<|another pad|>"})
    tokenizer.save_pretrained(folder)
    assert f"go up to {rows}, and the model's embedding matrix has {rows} rows" in only(problems(folder)).rule


def test_a_tokenizer_without_an_end_is_refused_until_one_is_named(folder, problems):
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            values = json.loads((folder / name).read_text())
            values.pop("eos_token", None)
            (folder / name).write_text(json.dumps(values))
    error = only(problems(folder))
    assert error.key == "model.eos_token" and "no end-of-sequence token" in error.rule
    assert problems(folder, "model.eos_token='<|end|>'") == []


def test_a_stop_token_of_the_users_ends_replies_and_is_saved_with_the_model(folder):
    model = HF(path=str(folder), stop_tokens=("<|user|>",))
    loaded: Any = model.load(None, dtype=torch.float32, device="cpu")
    tokenizer = model.tokenizer(None)
    wanted = sorted(tokenizer.get_vocab()[t] for t in ("<|end|>", "<|user|>"))
    assert loaded.generation_config.eos_token_id == wanted == model.stops(tokenizer, loaded.config)
    with pytest.raises(UserError, match="no token of this model's vocabulary"):
        HF(path=str(folder), stop_tokens=("<|nothing|>",)).stops(tokenizer, loaded.config)


# -- adapters and GGUF ---------------------------------------------------------------------------------


@pytest.fixture
def adapter(folder: Path, tmp_path: Path) -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    base: Any = AutoModelForCausalLM.from_pretrained(folder)
    config: Any = LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_names_the_revision_of_its_base(tmp_path):
    for revision in (None, "v2"):
        (tmp_path / "adapter_config.json").write_text(
            json.dumps({"base_model_name_or_path": "owner/name", "revision": revision})
        )
        assert HF(path=str(tmp_path))._base() == HF(path="owner/name", revision=revision)
    (tmp_path / "adapter_config.json").write_text("[]")
    assert HF(path=str(tmp_path)).adapter_base is None


def test_an_adapters_folder_is_its_base_with_the_adapter_merged(adapter, folder, tmp_path, problems):
    from peft import AutoPeftModelForCausalLM

    assert problems(adapter) == []
    model, cache = HF(path=str(adapter)), Cache(tmp_path / "cache")
    entry = made(model, cache)
    assert entry is not None and entry.hit  # the check before the run has made it
    merged: Any = model.load(entry.path, dtype=torch.float32, device="cpu")
    ids = model.tokenizer(entry.path)("the cat sat", return_tensors="pt")
    with torch.no_grad():
        theirs = AutoPeftModelForCausalLM.from_pretrained(adapter)(**ids).logits
        plain: Any = HF(path=str(folder)).load(None, dtype=torch.float32, device="cpu")
        assert torch.allclose(merged(**ids).logits, theirs, atol=1e-5)
        assert not torch.allclose(plain(**ids).logits, theirs, atol=1e-2)
    assert model.context_length() == 128


def test_an_adapters_identity_holds_its_base(adapter, folder):
    task = Arithmetic()
    before = HF(path=str(adapter)).recipe_digest(task)
    rewrite(folder, lambda s: s | {"model.norm.weight": s["model.norm.weight"] * 2})
    assert HF(path=str(adapter)).recipe_digest(task) != before


def test_an_adapter_whose_base_is_gone_is_refused_by_its_name(adapter, folder, compose):
    shutil.rmtree(folder)
    (error,) = HF(path=str(adapter)).problems()
    assert error.key is not None and "base_model_name_or_path" in error.key and error.value == str(folder)


def test_a_gguf_file_is_named_where_it_is_meant(tmp_path):
    (tmp_path / "some.gguf").write_bytes(b"GGUF")
    (error,) = HF(path=str(tmp_path)).problems()
    assert error.fix == "model.gguf_file=some.gguf"
    (error,) = HF(path=str(tmp_path / "some.gguf")).problems()
    assert f"model.path={tmp_path} model.gguf_file=some.gguf" in str(error.fix)
    (error,) = HF(path=str(tmp_path), gguf_file="other.gguf").problems()
    assert "some.gguf" in error.rule


def test_an_adapter_on_routed_experts_trains_what_peft_says(problems, tmp_path):
    from transformers import MixtralConfig, MixtralForCausalLM

    from harness.models.adapters import LoRA

    folder = build_model(tmp_path / "mixtral", "llama")
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    config = MixtralConfig(
        vocab_size=rows, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=4, max_position_embeddings=128,
    )  # fmt: skip
    model: Any = MixtralForCausalLM(config)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder)
    assert problems(folder, "adapter=lora") == []
    adapter = LoRA(rank=4)
    expected = adapter.expected_trainable(model)
    from peft import get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's, about patterns that it made itself
        real = get_peft_model(model, adapter.peft_config())
    assert expected == sum(p.numel() for p in real.parameters() if p.requires_grad)


def test_targets_that_peft_cannot_adapt_are_said_before_the_run(folder, problems):
    error = only(problems(folder, "adapter=lora", "adapter.targets=[input_layernorm,q_proj]"))
    assert error.key == "adapter.targets" and "peft cannot adapt this model" in error.rule
