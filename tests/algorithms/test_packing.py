"""Packing saves padding and changes nothing else: the same rows in a step, the same gradient, no row sees another."""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from harness.algorithms.budget_meter import Meter
from harness.algorithms.packing import Collator, Packed, best_fit, check_apart, dealt, tokens_of
from harness.algorithms.sft import SFT
from harness.algorithms.trainers import ready_trainer
from harness.base.errors import UserError
from harness.models.adapters import LoRA
from harness.tasks.base import TaskData
from tests.toys import random_llama

WORDS = ("19", "well, the answer is 19.", "2", "i dont know.", "26", "well, it is 7", "7", "3")
PAIRS = tuple({"prompt": f"{i}+7=", "chosen": said, "rejected": "0"} for i, said in enumerate(WORDS))


def rows(lengths: list[int]) -> Dataset:
    """Rows of these lengths; every token says which row it is of."""
    ids = [[3 + i] * n for i, n in enumerate(lengths)]
    return Dataset.from_dict({"input_ids": ids, "labels": ids})


def packed(lengths: list[int], batch_size: int = 8, micro: int = 2, limit: int = 32, seed: int = 0) -> Packed:
    return Packed(rows(lengths), batch_size=batch_size, micro_batch_size=micro, limit=limit, seed=seed)


def of_step(data: Packed, step: int) -> list[int]:
    """Rows of a step."""
    items = [data[i] for i in range(step * data.accumulation, min(len(data), (step + 1) * data.accumulation))]
    return sorted({token - 3 for item in items for sequence in item["input_ids"] for token in sequence})


# -- what is packed ------------------------------------------------------------------------------------


def test_the_longest_rows_come_first_and_each_goes_where_it_leaves_least_room():
    assert best_fit(range(5), [4, 9, 6, 3, 1], 10) == [[1, 4], [2, 0], [3]]


def test_every_row_is_there_once_and_whole_and_a_sequence_is_within_the_limit():
    rng = random.Random(0)
    lengths = [rng.randint(2, 32) for _ in range(101)]
    data = packed(lengths)
    seen: list[int] = []
    for i in range(len(data)):
        item = data[i]
        assert 1 <= len(item["input_ids"]) <= 2
        for ids, labels, parts in zip(item["input_ids"], item["labels"], item["seq_lengths"], strict=True):
            assert len(ids) == len(labels) == sum(parts) <= 32
            at = 0
            for length in parts:
                row = ids[at] - 3
                assert ids[at : at + length] == [ids[at]] * length and length == lengths[row]
                assert labels[at] == -100 and labels[at + 1 : at + length] == ids[at + 1 : at + length]
                seen.append(row)
                at += length
    assert sorted(seen) == list(range(101)) and data.rows == 101


def test_a_step_has_as_many_rows_as_without_in_a_fixed_number_of_micro_batches_and_the_short_one_is_last():
    data = packed([3] * 8 + [31] * 8 + [5] * 3)
    assert 1 < data.accumulation <= 4
    for epoch in range(3):
        data.set_epoch(epoch)
        assert [len(of_step(data, step)) for step in range(3)] == [8, 8, 3]


def test_passes_differ_in_the_order_of_their_steps_and_repeat_by_the_seed():
    lengths = [random.Random(1).randint(2, 30) for _ in range(80)]
    data, again = packed(lengths), packed(lengths)
    first = [of_step(data, step) for step in range(10)]
    data.set_epoch(1)
    second = [of_step(data, step) for step in range(10)]
    assert first != second and sorted(first) == sorted(second)
    again.set_epoch(1)
    assert [of_step(again, step) for step in range(10)] == second
    assert [of_step(packed(lengths, seed=1), step) for step in range(10)] != first


def test_micro_batches_of_a_step_are_alike_in_size_and_none_is_empty():
    lengths = [8, 7, 6, 5, 4, 3, 2, 2]
    found = dealt([[i] for i in range(8)], lengths, 4)
    assert sorted(sum(lengths[r] for s in micro for r in s) for micro in found) == [9, 9, 9, 10]
    assert [len(micro) for micro in dealt([[0, 1, 2]], lengths, 2)] == [1, 1]
    assert [len(micro) for micro in dealt([[0]], lengths, 4)] == [1], "a row cannot be parted"


# -- as tensors ----------------------------------------------------------------------------------------


def test_positions_start_anew_with_each_row_and_padding_is_no_token():
    item = {"input_ids": [[5, 5, 6, 6, 6], [7, 7]], "labels": [[1] * 5, [1] * 2], "seq_lengths": [[2, 3], [2]]}
    batch = Collator(0, flat=False)([item])
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2], [0, 1, 0, 0, 0]]
    assert batch["labels"][1].tolist() == [1, 1, -100, -100, -100] and batch["input_ids"][1, 2:].tolist() == [0] * 3
    assert int(tokens_of(batch["position_ids"])) == 7
    flat = Collator(0, flat=True)([item])
    assert flat["position_ids"].tolist() == [[0, 1, 0, 1, 2, 0, 1]] and int(tokens_of(flat["position_ids"])) == 7


class Until(TrainerCallback):
    """Ends training after a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


@pytest.fixture
def trained(job):
    """The trainer, its meter and weights after training the same rows in other ways."""

    def train(*, packing: bool, **more: Any) -> tuple[Any, Meter]:
        algo = SFT(packing=packing, anchor=more.pop("anchor", 0.0))
        adapter, pairs = more.pop("adapter", job.adapter), more.pop("pairs", PAIRS)
        until, resume = more.pop("until", None), more.pop("resume", None)
        mine = replace(
            job,
            model=random_llama(0),
            adapter=adapter,
            data=TaskData(train_pairs=pairs),
            train=replace(job.train, batch_size=8, micro_batch_size=2, **more),
        )
        training = ready_trainer(algo, mine)
        meter = Meter(algo, mine.train)
        meter.attach(training)
        if until is not None:
            training.trainer.add_callback(Until(until))
        training.trainer.train(resume_from_checkpoint=resume)
        return training.trainer, meter

    return train


def weights(trainer: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.model.parameters() if p.requires_grad]


@pytest.mark.parametrize("more", [{}, {"anchor": 0.5}, {"adapter": LoRA(rank=4)}], ids=["full", "anchored", "lora"])
def test_a_step_learns_what_it_learns_without(trained, more):
    plain, before = trained(packing=False, **more)
    short, after = trained(packing=True, **more)
    assert short.args.gradient_accumulation_steps < plain.args.gradient_accumulation_steps
    grown = [one.abs().max() for one in weights(plain)]
    for one, other, size in zip(weights(plain), weights(short), grown, strict=True):
        torch.testing.assert_close(one, other, atol=2e-4 * float(size), rtol=1e-3)
    assert after.spent["tokens"] == before.spent["tokens"] and after.spent["prompts"] == before.spent["prompts"] == 8
    first, second = (next(e for e in t.state.log_history if "loss" in e)["loss"] for t in (plain, short))
    assert first == pytest.approx(second, rel=1e-4)


def test_epochs_are_passes_over_rows(trained):
    trainer, meter = trained(packing=True, steps=None, epochs=3.0)
    assert trainer.state.global_step == 3 and meter.spent["prompts"] == 24


# -- rows apart ----------------------------------------------------------------------------------------


def test_rows_stay_apart_in_a_model_that_takes_positions():
    check_apart(random_llama(0), packed([5, 6, 7, 8], batch_size=2), Collator(0, flat=False))


class Blind(torch.nn.Module):
    """A model that takes no notice of positions: all before a token is seen."""

    def __init__(self):
        super().__init__()
        self.inner = random_llama(0)
        self.config, self.device = self.inner.config, self.inner.device

    def forward(self, input_ids: Any, position_ids: Any, use_cache: bool) -> Any:
        return self.inner(input_ids=input_ids, use_cache=use_cache)


def test_a_model_that_mixes_rows_is_refused_with_the_key_and_the_fix():
    with pytest.raises(UserError, match="mixes them") as raised:
        check_apart(Blind(), packed([5, 6, 7, 8], batch_size=2), Collator(0, flat=False))
    assert raised.value.key == "algo.packing" and raised.value.fix == "algo.packing=false"


def test_tokens_are_counted_by_mask_where_there_is_one():
    meter = Meter(SFT(), SimpleNamespace(budget=SimpleNamespace(named=None)))  # type: ignore[arg-type]
    model: Any = SimpleNamespace(training=True)
    ids = torch.zeros(2, 3, dtype=torch.long)
    meter._count(model, (), {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])})
    meter._count(model, (), {"input_ids": ids, "position_ids": torch.tensor([[0, 1, 0], [0, 1, 2]])})
    meter._count(model, (ids,), {})
    meter.algo = SimpleNamespace(prompts_seen=lambda *_: 0)  # type: ignore[assignment]
    assert meter.spent["tokens"] == 5 + 5 + 6


def test_what_goes_on_from_a_checkpoint_takes_the_micro_batches_that_were_left(trained, job):
    """Three passes of two steps and a short one; cut after the fifth step."""
    pairs, long = [dict(PAIRS[i % 8], prompt=f"{i}+7=") for i in range(19)], {"steps": None, "epochs": 3.0}
    whole, _ = trained(packing=True, pairs=pairs, **long)
    trained(packing=True, pairs=pairs, until=5, checkpoint_steps=5, **long)
    rest, meter = trained(packing=True, pairs=pairs, resume=str(job.output_dir / "checkpoint-5"), **long)
    assert rest.state.global_step == whole.state.global_step == 9 and meter.spent["prompts"] == 3 * 19
    for one, other in zip(weights(whole), weights(rest), strict=True):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-5)
