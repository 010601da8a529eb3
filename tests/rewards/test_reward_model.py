"""The reward-model stage: what it learns, that it is shared, and that LoRA trials hold it on their own base."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.base.errors import UserError
from harness.models.classifier import score_sequences, with_score
from harness.rewards.base import Desk
from harness.rewards.model import ModelReward
from harness.rewards.process import ProcessReward
from harness.stages.reward_model import contrasting, judged
from tests.inside import tell
from tests.toys import build_model, conversational_rows, random_llama, write_jsonl

FAST = ("algo=ppo", "reward=model", "reward.steps=3", "reward.batch_size=8", "eval=none", "train.steps=4",
        "train.batch_size=8")  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stages")


@pytest.mark.parametrize("adapter", ["full", "lora", "qlora"])
def test_ppo_trains_against_a_reward_model_of_each_kind(tmp_path, cache, adapter):
    told = tell(tmp_path, cache, *FAST, f"adapter={adapter}", "rank=2" if adapter != "full" else "seed=0")
    (stage,) = [e.data for e in told.events if e.kind == "stage" and e.data["stage"] == "reward_model"]
    assert not stage["hit"]
    assert {"test/accuracy", "test/margin", "test/brier", "test/ece", "mean", "deviation"} <= set(stage["metrics"])
    roles = told.under("memory/role_")
    assert set(roles) == {f"memory/role_{r}_mb" for r in ("policy", "reference", "reward", "critic")}
    policy = roles["memory/role_policy_mb"]
    if adapter == "full":
        assert roles["memory/role_reward_mb"] == pytest.approx(policy, rel=0.05)
        assert roles["memory/role_critic_mb"] == pytest.approx(policy, rel=0.05)
    else:
        assert roles["memory/role_reference_mb"] == 0
        assert 0 < roles["memory/role_reward_mb"] < 0.5 * policy
        assert 0 < roles["memory/role_critic_mb"] < 0.5 * policy
    names = {name for _, name, _ in told.series}
    assert {"train/reward", "train/true_reward", "train/value_loss"} <= names


def test_the_stage_is_built_once_for_all_seeds_and_algorithms(tmp_path, cache):
    small = (*FAST, "adapter=lora", "rank=3")
    first = tell(tmp_path / "a", cache, *small, "seed=0")
    second = tell(tmp_path / "b", cache, *small, "seed=1")
    grpo = tell(tmp_path / "c", cache, *small, "algo=grpo")
    assert (first.stages["reward_model"], second.stages["reward_model"], grpo.stages["reward_model"]) == (
        False,
        True,
        True,
    )


def test_on_the_shared_base_the_reward_model_says_what_it_said_when_it_was_trained(tmp_path, cache):
    """The score of a completion, through the policy's base at the start of a trial, is the stage's own."""
    from peft import AutoPeftModelForSequenceClassification

    from harness.config.compose import compose, hydra_config
    from harness.rewards.base import Desk
    from harness.store.journal import Journal
    from harness.trial.assemble import assemble
    from harness.trial.checks import check_data
    from harness.trial.context import prepare_ground
    from harness.trial.job import Job
    from tests.inside import SIZES

    with hydra_config():
        plain = compose(["sweep=test", *SIZES, *FAST, "adapter=lora", "rank=2"])
    setup = assemble(plain)
    job = Job(folder=str(tmp_path), plain=plain, cache_dir=str(cache), device="cpu")
    journal = Journal(tmp_path / "worker.jsonl")
    ground = prepare_ground(setup, check_data(setup), job, journal)
    folders = ground.reward_folders(journal)
    (folder,) = folders.values()
    reward: Any = setup.reward
    from peft import get_peft_model

    policy = get_peft_model(ground.load_policy_base(), setup.adapter.peft_config())
    desk = Desk(policy, ground.tokenizer, ground.rows, folders, "cpu", torch.float32)
    score = reward.open(desk)
    rows, texts = list(ground.data.train_prompts[:6]), ["19", "well, the answer is 7.", "i dont know.", "3", "", "12"]
    ours = list(score(rows, texts, [True] * 6))

    alone = AutoPeftModelForSequenceClassification.from_pretrained(str(folder), num_labels=1).eval()
    note = json.loads((folder / "entry.json").read_text())["note"]
    for row, text, said in zip(rows, texts, ours, strict=True):
        ids = ground.tokenizer(row["prompt"] + text)["input_ids"] + [ground.tokenizer.eos_token_id]
        with torch.no_grad():
            raw = alone(input_ids=torch.tensor([ids])).logits[0, 0].item()
        assert said == pytest.approx((raw - note["mean"]) / note["deviation"], abs=1e-3)
    assert policy.active_adapters == ["default"]
    journal.close()


def reward_model_at(folder: Path, base: Path) -> Path:
    """A reward model of random weights, saved as a user's would be."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    shell = with_score(AutoModelForCausalLM.from_pretrained(base))
    torch.nn.init.normal_(shell.score.weight)
    shell.config.pad_token_id = tokenizer.pad_token_id
    for part in (shell, tokenizer):
        part.save_pretrained(folder)
    return folder


def test_a_reward_model_by_path_is_taken_as_it_is(tmp_path, cache):
    path = reward_model_at(tmp_path / "rm", build_model(tmp_path / "base", "qwen2", chat=False))
    told = tell(tmp_path / "t", cache, *FAST[:2], f"reward.path={path}", *FAST[4:], "adapter=lora", "rank=2")
    assert "reward_model" not in told.stages
    assert told.under("memory/role_")["memory/role_reward_mb"] > 0


@pytest.mark.parametrize("kind", [ModelReward, ProcessReward])
def test_a_model_without_a_trained_head_is_refused_and_never_scores_by_chance(tmp_path, kind):
    from transformers import AutoConfig, AutoTokenizer

    base = build_model(tmp_path / "base", "qwen2")
    config = AutoConfig.from_pretrained(base)
    config.num_labels = 1
    config.save_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    with pytest.raises(UserError, match="score by chance") as error:
        kind(path=str(base)).held(Desk(None, tokenizer, list, {}, "cpu", torch.float32))
    assert error.value.key == "reward.path" and "score" in error.value.rule


def test_an_adapter_that_has_another_head_is_refused(tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    base = build_model(tmp_path / "base", "qwen2")
    shell = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(base)
    for part in (get_peft_model(shell, LoraConfig(task_type="SEQ_CLS", r=2)), tokenizer):
        part.save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match=r"reward\.path"):
        ModelReward(path=str(tmp_path / "adapter")).held(Desk(None, tokenizer, list, {}, "cpu", torch.float32))


def test_a_reward_model_judges_the_win_rate_where_no_rule_does(tmp_path, cache):
    base = build_model(tmp_path / "base", "qwen2")
    judge = reward_model_at(tmp_path / "judge", base)
    write_jsonl(tmp_path / "prefs.jsonl", conversational_rows(30))
    own = ("algo=dpo", "model=hf", f"model.path={base}", "task=preferences", f"task.path={tmp_path / 'prefs.jsonl'}",
           "eval.evaluators.behaviour=null")  # fmt: skip
    sizes = ("train.steps=2", "train.batch_size=4", "train.micro_batch_size=4", "train.max_length=64",
             "train.max_completion_length=8", "train.learning_rate=1e-2")  # fmt: skip
    without = tell(tmp_path / "without", cache, *own, sizes=sizes)
    assert "eval/win_rate" not in without.metrics
    said = next(e.data["message"] for e in without.events if e.kind == "note" and "win_rate" in e.data["message"])
    assert "win_rate.judge" in said
    told = tell(tmp_path / "with", cache, *own, f"eval.evaluators.win_rate.judge={judge}", sizes=sizes)
    assert 0 <= told.metrics["eval/win_rate"] <= 1
    with pytest.raises(UserError, match=r"win_rate\.judge"):
        tell(tmp_path / "no", cache, *own, f"eval.evaluators.win_rate.judge={tmp_path / 'nothing'}", sizes=sizes)


def test_what_a_reward_model_trained_can_be_judged_anew_without_it(tmp_path, cache):
    """A later evaluation loads what was saved; the reward model is the trainer's alone."""
    options = (*FAST, "adapter=lora", "rank=2")
    first = tell(tmp_path, cache, *options)
    again = tell(tmp_path, cache, *options, mode="evaluate")
    assert "reward_model" in first.stages and "reward_model" not in again.stages


@pytest.mark.slow
def test_two_trials_at_once_build_one_reward_model(tmp_path, cache):
    """Parallel launchers start trials that need the same stage; the second waits for the first."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    fresh = tmp_path / "cache"
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        waiting = [
            pool.submit(tell, tmp_path / str(n), fresh, *FAST, "adapter=lora", "rank=2", f"seed={n}") for n in range(2)
        ]
        hits = sorted(w.result().stages["reward_model"] for w in waiting)
    assert hits == [False, True]
    assert len([p for p in (fresh / "reward_model").iterdir() if p.is_dir()]) == 1


def test_scores_do_not_depend_on_the_batch():
    shell = with_score(random_llama(0)).eval()
    torch.nn.init.normal_(shell.score.weight)
    shell.config.pad_token_id = 0
    sequences = [[5, 6, 7], [5] * 9, [8], [4, 4, 4, 4, 9]]
    together = score_sequences(shell, sequences, pad=0, batch_size=4, device="cpu", precision="fp32")
    alone = torch.cat(
        [score_sequences(shell, [s], pad=0, batch_size=1, device="cpu", precision="fp32") for s in sequences]
    )
    assert torch.allclose(together, alone, atol=1e-5)


def test_accuracy_margin_and_calibration_of_known_margins():
    # sigmoid(ln 3) = 3/4: three of four right at confidence 3/4 is perfectly calibrated
    found = judged(torch.tensor([math.log(3)] * 3 + [-math.log(3)]))
    assert found["accuracy"] == pytest.approx(0.75)
    assert found["margin"] == pytest.approx(math.log(3) / 2)
    assert found["ece"] == pytest.approx(0, abs=1e-6)
    assert found["brier"] == pytest.approx((3 * 0.25**2 + 0.75**2) / 4)
    assert judged(torch.tensor([0.0, 1.0]))["accuracy"] == 0.75
    assert judged(torch.tensor([math.log(3)] * 4))["ece"] == pytest.approx(0.25)


# -- pairs that contrast prompts -----------------------------------------------------------------------


def test_a_contrasting_pair_keeps_its_winner_and_loses_to_what_was_chosen_for_another_prompt():
    pairs = [{"prompt": f"{n}+1=", "chosen": str(n + 1), "rejected": "dunno"} for n in range(20)]
    added = contrasting(pairs, 50, seed=0)
    assert len(added) == 50
    for row in added:
        assert int(row["chosen"]) == int(row["prompt"].removesuffix("+1=")) + 1
        assert row["rejected"] != row["chosen"] and row["rejected"] in {p["chosen"] for p in pairs}
    assert contrasting(pairs, 50, seed=0) == added != contrasting(pairs, 50, seed=1)


def test_where_every_prompt_has_the_same_answer_nothing_can_be_contrasted():
    alike = [{"prompt": str(n), "chosen": "yes", "rejected": "no"} for n in range(4)]
    assert contrasting(alike, 10, seed=0) == []
    assert contrasting([], 10, seed=0) == []


def test_conversations_are_contrasted_whole():
    said = lambda text: [{"role": "assistant", "content": text}]  # noqa: E731
    pairs = [{"prompt": [{"role": "user", "content": c}], "chosen": said(c * 2), "rejected": said("x")} for c in "ab"]
    first = contrasting(pairs, 1, seed=0)[0]
    assert first["rejected"] in (said("aa"), said("bb")) and first["rejected"] != first["chosen"]
