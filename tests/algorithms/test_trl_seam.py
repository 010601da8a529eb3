"""What the seam takes of TRL and transformers is there, in the form in which it was read."""

from __future__ import annotations

import ast
import inspect
import re
from importlib.metadata import version
from pathlib import Path

import pytest
from trl import DPOTrainer, GRPOTrainer, KTOTrainer
from trl.kernels import chunked_logprob
from trl.trainer import dpo_trainer, kto_trainer, utils

import harness
from harness.algorithms import trl_seam
from harness.base.replacing import replaced

PACKAGE = Path(harness.__file__).parent
SEAM = (PACKAGE / "algorithms" / "trl_seam.py", PACKAGE / "algorithms" / "trl_head.py")
METHODS = {
    "_tokenize_prompts": ["prompts"],
    "_generate_single_turn": ["prompt_ids"],
    "_generate_and_score_completions": ["inputs"],
    "_get_per_token_logps_and_entropies": ["model", "input_ids", "attention_mask", "logits_to_keep"],
    "_compute_loss": ["model", "inputs"],
    "_prepare_inputs": ["generation_batch"],
    "_clip_grad_norm": ["model"],
    "_save_checkpoint": ["model", "trial"],
    "_load_from_checkpoint": ["resume_from_checkpoint", "model"],
    "_get_output_dir": ["trial"],
}


@pytest.mark.parametrize("name", METHODS)
def test_the_rollout_trainers_hooks_are_trls(name):
    taken = list(inspect.signature(getattr(GRPOTrainer, name)).parameters)[1:]
    assert taken[: len(METHODS[name])] == METHODS[name]


@pytest.mark.parametrize("name", ["_step", "_buffered_inputs", "_metrics", "_created_lr_scheduler"])
def test_its_attributes_are_set_where_trainers_are_made(name):
    sources = [inspect.getsource(c) for c in GRPOTrainer.__mro__ if c.__module__.startswith(("trl", "transformers"))]
    assert any(f"self.{name} =" in source for source in sources)


@pytest.mark.parametrize("trainer", [DPOTrainer, KTOTrainer])
def test_pair_trainers_prepare_rows_and_precompute_references_where_the_seam_steps_in(trainer):
    assert list(inspect.signature(trainer._prepare_dataset).parameters)[1:4] == ["dataset", "processing_class", "args"]
    assert list(inspect.signature(trainer._precompute_ref_logps).parameters)[1:] == ["dataset", "name", "batch_size"]
    assert callable(trainer.compute_ref_log_probs)


def test_the_output_head_is_made_of_what_the_rehearsal_replaces():
    for name in ("_forward_tile", "_backward_tile", "_addmm_fp32", "ChunkedLogProbFunction"):
        assert hasattr(chunked_logprob, name), name
    assert isinstance(utils._CHUNKED_LOGPROB_CHUNK_SIZE, int) and callable(utils._use_triton)
    assert callable(dpo_trainer.hash_module) and callable(kto_trainer.hash_module)


@pytest.mark.parametrize("library", trl_seam.READ_IN)
def test_it_was_read_in_the_version_that_is_installed(library):
    # A newer version fails here first: read what it changed, then set READ_IN.
    assert version(library).startswith(trl_seam.READ_IN[library] + ".")


def private_names(file: Path) -> set[str]:
    """Private attributes that a file takes of anything but ``self``'s own, and private names that it imports."""
    tree = ast.parse(file.read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("trl", "transformers"):
            found |= {alias.name for alias in node.names if alias.name.startswith("_")}
        if isinstance(node, ast.Attribute) and re.match(r"_[a-z]", node.attr):
            found.add(node.attr)
    return found


def test_no_other_file_takes_a_private_name_of_a_trainer():
    taken = {n for file in SEAM for n in private_names(file) if n not in ("_tokens",)} | set(METHODS)
    for file in PACKAGE.rglob("*.py"):
        if file not in SEAM:
            assert not private_names(file) & taken, file


def test_nothing_in_the_package_imports_the_mocks_of_tests():
    for file in PACKAGE.rglob("*.py"):
        assert "unittest" not in file.read_text(), file


def test_what_is_replaced_is_back_afterwards_and_must_have_been_there():
    class Base:
        def said(self) -> str:
            return "base"

    class Derived(Base):
        pass

    with replaced(Derived, "said", lambda self: "other"):
        assert Derived().said() == "other" and Base().said() == "base"
    assert Derived().said() == "base" and "said" not in vars(Derived)
    with pytest.raises(AttributeError), replaced(Derived, "gone", 1):
        pass
    with pytest.raises(ZeroDivisionError), replaced(Base, "said", None):
        raise ZeroDivisionError
    assert Derived().said() == "base"
