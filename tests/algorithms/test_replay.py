"""What keeps a model's other skills: replayed rows as a term of the loss, and SFT's anchor to the base."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

import pytest
import torch

from harness.algorithms.arguments import tokenized_completions
from harness.algorithms.dpo import DPO
from harness.algorithms.kto import KTO
from harness.algorithms.orpo import ORPO
from harness.algorithms.replay import Replayed, with_replayed
from harness.algorithms.sft import SFT
from harness.algorithms.trainers import ready_trainer
from harness.base.errors import UserError, UserErrors
from harness.config.train import Replay
from harness.models.adapters import LoRA
from harness.tasks.reading.replay import replay_rows
from harness.trial.assemble import assemble
from harness.trial.checks import check_data
from harness.trial.identify import identify
from tests.algorithms.world import PAIRS, TOKENIZER, log_prob, loss_of
from tests.inside import SIZES, plain_config
from tests.toys import random_llama, write_jsonl

KEPT = (
    {"prompt": "a b c=", "completion": "d e f"}, {"prompt": "x=", "completion": "y z"},
    {"prompt": "hello ", "completion": "you"}, {"prompt": "1 2 3 ", "completion": "4 5"},
)  # fmt: skip


def replaying(job: Any, share: float = 0.25, **train: Any) -> Any:
    return replace(job, replay=KEPT, train=replace(job.train, replay=Replay(share=share), **train))


def likelihood(model: Any, rows: Any) -> float:
    said = [log_prob(model, row["prompt"], row["completion"]) for row in rows]
    return -sum(total for total, _ in said) / sum(tokens for _, tokens in said)


def taken(batch: dict[str, torch.Tensor]) -> list[dict[str, str]]:
    """The rows of a replayed micro-batch."""
    parts = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    texts = [TOKENIZER.decode(ids[mask.bool()][:-1]) for ids, mask in parts]
    return [next(row for row in KEPT if row["prompt"] + row["completion"] == text) for text in texts]


@pytest.mark.parametrize("algo", [DPO(beta=0.3), KTO(beta=0.3), ORPO(beta=0.3)], ids=lambda a: a.name)
@pytest.mark.parametrize("share", [0.25, 0.5])
def test_the_loss_is_shared_between_the_rows_and_those_that_are_replayed(job, policy, algo, share):
    without = loss_of(algo.trainer(job).trainer)
    job = replace(job, model=random_llama(0), reference=None if algo.name == "orpo" else random_llama(1))
    replayed = replaying(job, share)
    (rows,) = [taken(Replayed(replayed).batch(0))]
    assert len(rows) == round(4 * share)
    expected = (1 - share) * without + share * likelihood(policy, rows)
    assert loss_of(algo.trainer(replayed).trainer) == pytest.approx(expected, rel=1e-4)


def test_each_pass_over_replayed_rows_has_each_once_in_an_order_of_its_own(job):
    replayed = Replayed(replaying(job))
    numbers = [KEPT.index(taken(replayed.batch(i))[0]) for i in range(40)]
    passes = [tuple(numbers[i : i + 4]) for i in range(0, 40, 4)]
    assert all(sorted(p) == [0, 1, 2, 3] for p in passes) and len(set(passes)) > 2


def test_a_trial_that_goes_on_takes_the_rows_that_it_would_have_taken(job):
    whole, resumed = Replayed(replaying(job)), Replayed(replaying(job))
    seen = [whole.batch(i)["input_ids"].tolist() for i in range(12)]
    assert [resumed.batch(i)["input_ids"].tolist() for i in range(7, 12)] == seen[7:]


def test_micro_batches_of_a_step_take_different_rows(job):
    trainer = DPO().trainer(replaying(job, micro_batch_size=2, batch_size=4)).trainer
    drawn, draw = [], trainer.replayed.batch
    trainer.replayed.batch = lambda number: drawn.append(number) or draw(number)
    trainer.args.max_steps = 2
    trainer.train()
    assert drawn == [0, 1, 2, 3]
    logged = [line["replay_loss"] for line in trainer.state.log_history if "replay_loss" in line]
    assert logged and statistics.fmean(logged) > 0


def test_sft_mixes_so_many_rows_that_they_are_the_share(job):
    rows = tokenized_completions(job, [{"prompt": str(i), "completion": "1"} for i in range(30)])
    found = list(with_replayed(replaying(job), rows))
    kept = list(tokenized_completions(job, KEPT))
    assert found[:30] == list(rows) and len(found) == 40 and all(row in kept for row in found[30:])
    assert with_replayed(job, rows) is rows
    trainer = SFT().trainer(replaying(job, share=0.5)).trainer
    assert len(trainer.train_dataset) == 2 * len(PAIRS)


def test_rows_that_leave_no_room_for_a_completion_are_refused(job):
    with pytest.raises(UserError, match="fill train.max_length") as refused:
        DPO().trainer(replaying(job, max_length=2))
    assert refused.value.key == "train.replay.path"


# -- rows from a file ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"prompt": "a", "completion": "b"}], [{"prompt": "a", "completion": "b"}]),
        (
            [{"prompt": "a", "completion": "b", "label": True}, {"prompt": "c", "completion": "d", "label": False}],
            [{"prompt": "a", "completion": "b"}],
        ),
        ([{"prompt": "a", "chosen": "b", "rejected": "c"}], [{"prompt": "a", "completion": "b"}]),
        ([{"instruction": "a", "input": "", "output": "b"}], [{"prompt": "a", "completion": "b"}]),
        (
            [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}],
            [
                {
                    "prompt": [{"role": "user", "content": "a"}],
                    "completion": [{"role": "assistant", "content": "b"}],
                }
            ],
        ),
    ],
    ids=["completions", "labelled", "pairs", "instructions", "messages"],
)
def test_rows_to_replay_come_in_the_forms_that_people_have(tmp_path, rows, expected):
    assert replay_rows(str(write_jsonl(tmp_path / "r.jsonl", rows)), allow_skipped=0.0) == expected


def test_a_file_without_a_desirable_completion_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "r.jsonl", [{"prompt": "a", "completion": "b", "label": False}])
    with pytest.raises(UserError, match="no desirable completion"):
        replay_rows(str(path), allow_skipped=0.0)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("algo=grpo", "train.replay.share=0.1"), "learns from what it samples"),
        (("algo=dpo", "train.replay.path=rows.jsonl"), "of which none is replayed"),
        (("algo=dpo", "train.replay.share=0.1", "train.replay.path=nowhere.jsonl"), "train.replay.path"),
        (("algo=dpo", "train.replay.share=0.1", "model=shape/llama-10m"), "needs rows to replay"),
        (("algo=dpo", "train.replay.share=1.0"), "train.replay.share"),
    ],
)
def test_a_replay_that_cannot_be_is_refused_by_name(overrides, words):
    with pytest.raises(UserErrors) as caught:
        check_data(assemble(plain_config(*overrides, "eval=none", sizes=() if "shape" in str(overrides) else SIZES)))
    assert words in str(caught.value)


def test_the_content_of_replayed_rows_is_part_of_a_trials_key_and_nothing_is_without_them(tmp_path):
    path = write_jsonl(tmp_path / "r.jsonl", list(KEPT))

    def known(*overrides: str) -> Any:
        setup = assemble(plain_config("algo=dpo", "eval=none", *overrides))
        return identify(setup, check_data(setup))

    plain, first = known(), known("train.replay.share=0.1", f"train.replay.path={path}")
    assert plain.train_key != first.train_key and not any("replay" in name for name in plain.why)
    write_jsonl(path, [*KEPT, {"prompt": "more", "completion": "of it"}])
    second = known("train.replay.share=0.1", f"train.replay.path={path}")
    assert second.trial_id == first.trial_id and second.train_key != first.train_key


# -- the anchor ----------------------------------------------------------------------------------------


def distributions(model: Any, row: dict[str, str]) -> torch.Tensor:
    before, said = TOKENIZER(row["prompt"])["input_ids"], TOKENIZER(row["chosen"])["input_ids"]
    with torch.no_grad():
        found = model(input_ids=torch.tensor([[*before, *said, TOKENIZER.eos_token_id]])).logits[0].double()
    return found.log_softmax(-1)[len(before) - 1 : -1]


def test_the_anchor_is_the_kl_to_the_base_on_the_trained_tokens(job, policy, reference):
    trainer = SFT(anchor=0.3).trainer(replace(job, holds="own")).trainer
    now, then = ([distributions(model, pair) for pair in PAIRS] for model in (policy, reference))
    tokens = sum(len(part) for part in now)
    kl = sum(float((a.exp() * (a - b)).sum()) for a, b in zip(now, then, strict=True)) / tokens
    said = [log_prob(policy, pair["prompt"], pair["chosen"]) for pair in PAIRS]
    expected = -sum(total for total, _ in said) / tokens + 0.3 * kl
    assert kl > 0.1 and loss_of(trainer) == pytest.approx(expected, rel=1e-5)


def test_an_anchored_adapter_is_held_to_the_base_without_a_copy(job):
    job = replace(job, reference=None, adapter=LoRA(rank=2), model=random_llama(0))
    training = ready_trainer(SFT(anchor=0.3), job)
    assert training.reference == "base" and training.trainer.ref_model is None
    training.trainer.compute_loss(training.trainer.model, next(iter(training.trainer.get_train_dataloader())))
    assert training.trainer._metrics["train"]["kl"][-1] == pytest.approx(0.0, abs=1e-6)
    plain = ready_trainer(SFT(), replace(job, model=random_llama(0)))
    assert plain.reference == "none"


def test_a_strong_anchor_keeps_the_policy_nearer_to_its_base(job):
    def moved(anchor: float) -> float:
        fresh = replace(job, reference=None, model=random_llama(0), train=replace(job.train, steps=8))
        trainer = ready_trainer(SFT(anchor=anchor), fresh).trainer
        trainer.train()
        now, then = ([distributions(m.eval(), pair) for pair in PAIRS] for m in (trainer.model, random_llama(0)))
        return sum(float((a.exp() * (a - b)).sum()) for a, b in zip(now, then, strict=True))

    assert moved(10.0) < 0.5 * moved(0.01)


@pytest.mark.parametrize("anchor", [0.0, 0.3])
def test_how_a_step_is_cut_into_micro_batches_changes_no_gradient_of_sft(job, anchor):
    def gradient(micro: int) -> torch.Tensor:
        fresh = replace(
            job, reference=None, model=random_llama(0),
            train=replace(job.train, micro_batch_size=micro, max_grad_norm=1e9, optimizer="adamw_torch"),
        )  # fmt: skip
        trainer = ready_trainer(SFT(anchor=anchor), fresh).trainer
        if trainer.__class__.__name__ == "Anchored":
            with torch.no_grad():
                for p in trainer.ref_model.parameters():
                    p.add_(0.05 * torch.ones_like(p))
        seen: list[torch.Tensor] = []
        step = trainer.training_step

        def watched(*arguments: Any, **options: Any) -> Any:
            out = step(*arguments, **options)
            seen.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]).clone())
            return out

        trainer.training_step = watched
        trainer.train()
        return seen[-1]

    whole = gradient(4)
    assert whole.norm() > 1e-3 and torch.allclose(gradient(2), whole, rtol=1e-3, atol=1e-5 * float(whole.abs().max()))
