"""The stage that learns to grade steps: its loss, what it reports, where it reads, and what it learns."""

from __future__ import annotations

import math
import random

import pytest
import torch

from harness.models.adapters import Full, LoRA
from harness.models.classifier import score_places, with_score
from harness.models.loading import character_tokenizer
from harness.rewards.process import StepModelSpec
from harness.stages.classifying import StageGround
from harness.stages.process_model import UNLABELLED, collated, judged, process_model, step_loss
from harness.store.cache import Cache
from harness.tasks.base import TaskData
from tests.inside import tell
from tests.toys import random_llama, write_jsonl


def test_the_loss_is_that_of_the_ends_of_steps_alone():
    odds = torch.tensor([[5.0, math.log(3), -7.0], [math.log(4), 0.0, 2.0]])
    labels = torch.tensor([[UNLABELLED, 1.0, UNLABELLED], [0.0, 1.0, UNLABELLED]])
    # P(right) is 3/4, 4/5 and 1/2; the second of these steps is wrong.
    wanted = -(math.log(3 / 4) + math.log(1 / 5) + math.log(1 / 2)) / 3
    assert step_loss(odds, labels).item() == pytest.approx(wanted, abs=1e-6)


def test_rows_are_padded_and_labelled_at_the_ends_of_their_steps():
    rows = [{"ids": [5, 6, 7], "places": [1, 2], "labels": [1.0, 0.0]}, {"ids": [8], "places": [0], "labels": [1.0]}]
    batch = collated(rows, pad=3)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 3, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-1, 1, 0], [1, -1, -1]]


def test_grades_are_judged_by_steps_and_by_the_first_wrong_step():
    found = judged([[0.9, 0.2], [0.8, 0.6], [0.1]], [[True, False], [True, False], [True]])
    assert found["step_accuracy"] == pytest.approx(3 / 5)
    assert found["right"] == pytest.approx(3 / 5)
    assert found["wrong_found"] == pytest.approx(1 / 2) and found["right_passed"] == pytest.approx(2 / 3)
    assert found["row_accuracy"] == pytest.approx(1 / 3)
    assert found["brier"] == pytest.approx((0.01 + 0.04 + 0.04 + 0.36 + 0.81) / 5)
    assert "wrong_found" not in judged([[0.9]], [[True]])


def test_a_place_is_scored_as_the_token_classifier_scores_it_whatever_the_batch():
    shell = with_score(random_llama(0), each_token=True).eval()
    torch.nn.init.normal_(shell.score.weight)
    sequences, places = [[5, 6, 7], [5] * 9, [8], [4, 4, 9]], [[0, 2], [8, 3], [], [1]]
    found = score_places(shell, sequences, places, pad=0, batch_size=3, device="cpu", precision="fp32")
    wanted = []
    for ids, own in zip(sequences, places, strict=True):
        with torch.no_grad():
            wanted += shell(input_ids=torch.tensor([ids])).logits[0, own, 0].tolist()
    assert found.tolist() == pytest.approx(wanted, abs=1e-5)


def test_of_two_labels_the_odds_are_those_of_the_last():
    shell = with_score(random_llama(0), each_token=True).eval()
    shell.score = torch.nn.Linear(shell.score.in_features, 2)
    found = score_places(shell, [[5, 6, 7]], [[1]], pad=0, batch_size=3, device="cpu", precision="fp32")
    with torch.no_grad():
        chance = shell(input_ids=torch.tensor([[5, 6, 7]])).logits[0, 1].softmax(0)[1].item()
    assert torch.sigmoid(found).item() == pytest.approx(chance, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [Full(), LoRA(rank=4)], ids=["full", "lora"])
def test_the_stage_learns_what_makes_a_step_right_and_keeps_what_it_learned(tmp_path, adapter):
    """Steps with an ``a`` are right, and those with a ``b`` wrong: a model of random weights learns it."""
    draw = random.Random(0)
    rows = []
    for n in range(300):
        said = [draw.choice("ab") for _ in range(3)]
        rows.append({"prompt": f"{n}+1=", "completions": said, "labels": [word == "a" for word in said]})
    path = str(write_jsonl(tmp_path / "steps.jsonl", rows))
    spec = StepModelSpec(adapter, 1e-2, 60, 32, 0, 96, separator="=", rows=None, path=path, held_out=0.2)
    ground = StageGround(
        load=lambda: random_llama(0), base_key={"weights": "toy"}, data=TaskData(), tokenizer=character_tokenizer(96),
        rows=lambda rows: [dict(row) for row in rows], device="cpu", precision="fp32", dtype="torch.float32",
        frozen=torch.float32, chat=False, progress=lambda *_: None,
    )  # fmt: skip
    cache = Cache(tmp_path / "cache")
    entry = process_model(spec, ground, cache)
    note = cache.note(entry)
    assert note["rows"] == 240 and note["test/step_accuracy"] > 0.95 and note["test/row_accuracy"] > 0.85
    assert process_model(spec, ground, cache).hit


@pytest.mark.nightly
@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_grades_of_held_out_steps_become_right(tmp_path, adapter):
    """A base that knows chained sums tells right steps from wrong ones; who calls all right is right in half."""
    base = ("model.hidden=128", "model.intermediate=384", "model.steps=560", "model.batch_size=128")
    told = tell(
        tmp_path, tmp_path / "cache", "algo=grpo", "reward=process", "task.steps=2", "eval=none", f"adapter={adapter}",
        "train.steps=1", "train.batch_size=8", sizes=base,
    )  # fmt: skip
    (stage,) = [e.data for e in told.events if e.kind == "stage" and e.data["stage"] == "process_model"]
    assert stage["metrics"]["test/step_accuracy"] > 0.85
    assert stage["metrics"]["test/wrong_found"] > 0.8 and stage["metrics"]["test/right_passed"] > 0.8
