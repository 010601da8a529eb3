"""What only a model's own files can tell, asked before a sweep begins."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import UserError
from harness.cli.doctor import model_checks
from harness.models.adapters import LoRA
from harness.sweep import deep_checks
from harness.sweep.deep_checks import find_problems
from harness.trial.assemble import assemble
from tests.toys import build_model, conversational_rows, write_jsonl

LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}x"
FORBIDDEN = "{{ ''.__class__.__mro__ }}"
COMPLAINS = "{{ raise_exception('roles must alternate user/assistant') }}"
SUMS = "{{ 'a' + 1 }}"
TOO_FAR = "{% for a in range(10 ** 9) %}{% endfor %}"


@pytest.fixture
def plain(tmp_path: Path, compose: Any) -> dict[str, Any]:
    build_model(tmp_path / "model", "qwen2", chat=True)
    write_jsonl(tmp_path / "prefs.jsonl", conversational_rows(20))
    return compose(
        "model=hf", f"model.path={tmp_path / 'model'}", "task=preferences", f"task.path={tmp_path / 'prefs.jsonl'}",
        "train.max_length=64",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (LOOPS, "takes more than 0.2 s"),
        (FORBIDDEN, "SecurityError"),
        (COMPLAINS, "roles must alternate user/assistant"),
        (SUMS, "can only concatenate str"),
        (TOO_FAR, "OverflowError"),
        ("{% for %}", "TemplateSyntaxError"),
    ],
)
def test_a_chat_template_that_loops_or_fails_is_named_with_its_own_words(plain, monkeypatch, template, words):
    (Path(plain["model"]["path"]) / "chat_template.jinja").write_text(template)
    monkeypatch.setattr(deep_checks._in_time, "__defaults__", (0.2,))
    (error,) = find_problems(plain)
    assert isinstance(error, UserError) and error.key == "model.chat_template"
    assert words in error.rule


def test_a_model_whose_files_are_sound_has_no_problem(plain):
    assert find_problems(plain) == []


def test_the_doctor_says_whether_the_model_or_the_data_is_ill(plain, tmp_path):
    model, task = plain["model"]["path"], ("task=preferences", f"task.path={tmp_path / 'prefs.jsonl'}")
    well, data = model_checks(model, [*task, "train.max_length=64"])
    assert (well.name, well.state) == ("model", "ok") and "qwen2" in well.text
    assert (data.name, data.state) == ("data", "ok") and "training pairs, " in data.text
    alone = [{"prompt": f"{i} is", "completion": " odd", "label": i % 2 == 1} for i in range(60)]
    write_jsonl(tmp_path / "prefs.jsonl", alone)
    _, data = model_checks(model, [*task, "algo=kto", "train.max_length=64"])
    assert (data.name, data.state) == ("data", "ok") and "training completions" in data.text
    write_jsonl(tmp_path / "prefs.jsonl", [{"prompt": "a", "chosen": "b"}] * 20)
    (ill,) = model_checks(model, [*task, "train.max_length=64"])
    assert (ill.name, ill.state) == ("data", "wrong") and "task.columns.rejected" in ill.fix
    (gone,) = model_checks(str(tmp_path / "nowhere"), [])
    assert (gone.name, gone.state) == ("model", "wrong") and f"{tmp_path / 'nowhere'}: no such directory" in gone.text


class Miscounting(LoRA):
    """Of a user's: one parameter too many."""

    def expected_trainable(self, model: Any) -> int:
        return super().expected_trainable(model) + 1


def test_an_adapter_that_counts_by_itself_is_held_against_peft(compose, monkeypatch):
    # The page's own DoRA counted its rows twice, and only the embedded model was tried: which was not looked at.
    setup = assemble(compose("adapter=lora"))
    own = dataclasses.replace(setup, adapter=Miscounting())
    assert deep_checks._needs_checking(own) and not deep_checks._needs_checking(setup)
    config = setup.model.configuration(None)
    (found,) = deep_checks._target_problems(own, config)
    assert "expected_trainable() says" in str(found) and found.key == "adapter"
    assert deep_checks._target_problems(setup, config) == []
    asked = []
    monkeypatch.setattr(
        LoRA, "wrapped_empty", lambda self, model, made=LoRA.wrapped_empty: asked.append(1) or made(self, model)
    )
    deep_checks._target_problems(setup, config)
    assert len(asked) == 1  # of peft's own count, once is enough


@pytest.mark.parametrize(
    ("options", "key"),
    [
        (("adapter=lora", "adapter.targets=[q_proj,lm_head]"), "adapter.targets"),
        (("adapter=peft", "adapter.config={peft_type: LORA, r: 4, target_modules: [lm_head]}"), "adapter"),
    ],
)
def test_an_adapter_on_the_output_head_is_refused_before_anything_is_built(compose, options, key):
    setup = assemble(compose(*options))
    assert deep_checks._needs_checking(setup), "the embedded model too, where modules are named"
    (error,) = deep_checks._target_problems(setup, setup.model.configuration(None))
    assert error.key == key and "output head" in error.rule and "modules_to_save" in (error.fix or "")


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_an_adapter_that_trains_the_bases_own_biases_is_refused(plain, compose, bias):
    """Off it would be no base any more after the first step, and the reference would move along."""
    config = f"{{peft_type: LORA, r: 4, target_modules: [q_proj], bias: {bias}}}"
    with_bias = compose("adapter=peft", f"adapter.config={config}")
    plain["adapter"] = with_bias["adapter"]  # of qwen2, whose projections have biases
    (error,) = find_problems(plain)
    assert error.key == "adapter" and "q_proj.bias" in error.rule and "bias: none" in (error.fix or "")


@pytest.mark.parametrize("kind", ["LILY", "shadow"])
def test_methods_of_peft_by_which_no_figure_means_anything_are_refused(compose, kind):
    (error,) = assemble(
        compose("adapter=peft", f"adapter.config={{peft_type: {kind}, r: 4, target_modules: [q_proj]}}")
    ).adapter.problems(assemble(compose("algo=dpo")).train)
    assert error.key == "adapter.config.peft_type" and error.value == kind.upper()


def test_a_cap_of_logits_that_losses_do_not_know_is_refused(compose):
    setup = assemble(compose("algo=dpo"))
    config = setup.model.configuration(None)
    assert deep_checks._head_problems(setup, config) == []
    config.final_logit_softcapping, config.attn_logit_softcapping = 30.0, 50.0
    assert deep_checks._head_problems(setup, config) == []
    config.logits_soft_cap = 30.0
    (error,) = deep_checks._head_problems(setup, config)
    assert "logits_soft_cap=30.0" in error.rule
    assert deep_checks._head_problems(assemble(compose("algo=none")), config) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("model.attention=flex_attention", "runner.device=cpu"), "no backward pass on a CPU"),
        (("model.attention=fast",), "transformers has no such attention"),
        (("model.attention=flash_attention_2",), "needs the package flash-attn"),
        (("model.attention=flash_attention_3",), "needs the package flash-attn-3"),
    ],
)
def test_attention_that_cannot_be_had_is_refused_before_anything_is_trained(compose, options, words):
    setup_is_checked = deep_checks._needs_checking(assemble(compose(*options)))
    (error,) = find_problems(compose(*options))
    assert error.key == "model.attention" and words in error.rule and error.fix and setup_is_checked


def test_an_architecture_without_the_attention_is_named(tmp_path, compose):
    build_model(tmp_path / "gpt", "gpt2", chat=True)
    write_jsonl(tmp_path / "prefs.jsonl", conversational_rows(20))
    (error,) = find_problems(compose(
        "algo=none", "model=hf", f"model.path={tmp_path / 'gpt'}", "model.attention=flex_attention", "task=preferences",
        f"task.path={tmp_path / 'prefs.jsonl'}", "train.max_length=64",
    ))  # fmt: skip
    assert error.key == "model.attention" and "GPT2" in error.rule


def test_a_head_that_is_trained_whole_is_no_adapter_on_it(compose):
    config = "adapter.config={peft_type: LORA, r: 4, target_modules: [q_proj], modules_to_save: [lm_head]}"
    setup = assemble(compose("adapter=peft", config))
    assert deep_checks._target_problems(setup, setup.model.configuration(None)) == []
