"""The stage that makes a process reward model: the base learns to tell at the end of each step whether it is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import Trainer, TrainingArguments, set_seed
from trl.trainer.utils import disable_dropout_in_model

from harness.base import calibration
from harness.base.errors import UserError
from harness.config import identity
from harness.models.classifier import padding_for, score_places, with_score
from harness.rewards.process import PATH_KEY, StepModelSpec
from harness.rewards.steps import read_as
from harness.stages.classifying import BINS, StageGround, adapter_config, arguments, fitted, inputs_of
from harness.store.cache import Cache, Entry
from harness.tasks.base import Row
from harness.tasks.conversation import prompt_ids

UNLABELLED = -1.0
"""Of tokens at which no step ends."""


def process_model(spec: StepModelSpec, ground: StageGround, cache: Cache) -> Entry:
    """The folder of the trained model, from the cache or built now.

    Its note holds, per held-out split, what ``judged`` says of its grades.
    """
    rows = spec.load().away_from(ground.data.eval_prompts)
    recipe = replace(spec, task=None)
    inputs = inputs_of(recipe, ground, steps=rows.digest)
    return cache.fetch(
        "process_model",
        identity.digest(inputs),
        lambda folder: _build(spec, ground, folder, rows.train, rows.held_out),
        inputs=inputs,
    )


def _build(
    spec: StepModelSpec, ground: StageGround, folder: Path, train: Sequence[Row], held: Mapping[str, Sequence[Row]]
) -> Mapping[str, Any]:
    set_seed(spec.seed)
    sequences, places = _encoded(spec, ground, train)
    labels = [[float(label) for label in row["labels"]] for row in train]
    whole = [i for i in range(len(sequences)) if len(sequences[i]) <= spec.max_length]
    if not whole:
        rule = f"no row fits into {spec.max_length} tokens"
        raise UserError(rule, key=PATH_KEY, value=spec.path, fix="reward.max_length=..., or shorter rows")
    shell = with_score(ground.load(), each_token=True)
    pad = padding_for(sequences, ground.tokenizer.pad_token_id)
    data: Any = [{"ids": sequences[i], "places": places[i], "labels": labels[i]} for i in whole]

    def made(scratch: str, callbacks: list[Any]) -> Any:
        config, model = adapter_config(spec, shell, "TOKEN_CLS"), shell
        if config is not None:
            from peft import get_peft_model

            model = get_peft_model(shell, config)
        disable_dropout_in_model(model)
        return StepTrainer(
            model=model,
            args=TrainingArguments(output_dir=scratch, remove_unused_columns=False, **arguments(spec, ground)),
            train_dataset=data,
            data_collator=lambda rows: collated(rows, pad),
            processing_class=ground.tokenizer,
            callbacks=callbacks,
        )

    trained, loss = fitted(spec, ground, folder, shell, pad, made)
    note: dict[str, float] = {"loss": loss, "steps": spec.steps, "rows": len(whole)}
    for split, rows in held.items():
        chances, labels = _graded(spec, ground, trained, pad, rows)
        if chances:  # there are rows, and some of them fit
            note |= {f"{split}/{k}": v for k, v in judged(chances, labels).items()}
    return note


class StepTrainer(Trainer):
    """Trains a token-classification model of one label on the tokens with which steps end."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        """Binary cross-entropy, its mean over the steps of the batch."""
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        loss = step_loss(outputs.logits.squeeze(-1), inputs["labels"])
        return (loss, outputs) if return_outputs else loss


def step_loss(odds: Tensor, labels: Tensor) -> Tensor:
    """Mean of -log P(label) over the tokens that have one.

    Args:
        odds: (B, T), log-odds that the step which ends with a token is right.
        labels: (B, T), 1 right, 0 wrong, ``UNLABELLED`` elsewhere.
    """
    marked = labels != UNLABELLED
    return binary_cross_entropy_with_logits(odds[marked].float(), labels[marked])


def collated(rows: Sequence[Mapping[str, Any]], pad: int) -> dict[str, Tensor]:
    """Rows of token ids, places and labels, padded on the right: ids, mask and labels, (B, T) each."""
    width = max(len(row["ids"]) for row in rows)
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    labels = torch.full((len(rows), width), UNLABELLED)
    for i, row in enumerate(rows):
        ids[i, : len(row["ids"])] = torch.tensor(row["ids"])
        mask[i, : len(row["ids"])] = 1
        labels[i, row["places"]] = torch.tensor(row["labels"])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def judged(chances: Sequence[Sequence[float]], labels: Sequence[Sequence[bool]]) -> dict[str, float]:
    """What grades are worth, per step of all rows but for the last figure.

    ``step_accuracy`` (a chance of ½ counts half), ``right`` (share of right steps: who calls everything right, or
    everything wrong, has the larger of it and its rest), ``wrong_found`` and ``right_passed`` (shares of the wrong and
    of the right steps that are called so; absent without any), ``brier``, ``ece`` (of the chance, ten bins from 0 to
    1), and ``row_accuracy``: rows whose first wrong step is found, or which are all right and called so.
    """
    said = [chance for row in chances for chance in row]
    known = [float(label) for row in labels for label in row]
    hits = [0.5 if p == 0.5 else float((p > 0.5) == bool(label)) for p, label in zip(said, known, strict=True)]
    found = {
        "step_accuracy": sum(hits) / len(hits),
        "right": sum(known) / len(known),
        "brier": calibration.brier(said, known),
        "ece": calibration.expected_calibration_error(calibration.reliability(said, known, bins=BINS, span=(0.0, 1.0))),
        "row_accuracy": sum(
            _first_wrong([p > 0.5 for p in own]) == _first_wrong(known_own)
            for own, known_own in zip(chances, labels, strict=True)
        )
        / len(chances),
    }
    for name, wanted in (("wrong_found", 0.0), ("right_passed", 1.0)):
        own = [hit for hit, label in zip(hits, known, strict=True) if label == wanted]
        if own:
            found[name] = sum(own) / len(own)
    return found


def _first_wrong(right: Sequence[bool]) -> int | None:
    return next((i for i, good in enumerate(right) if not good), None)


def _encoded(spec: StepModelSpec, ground: StageGround, rows: Sequence[Row]) -> tuple[list[list[int]], list[list[int]]]:
    asked = [row["prompt"] for row in ground.rows([{"prompt": row["prompt"]} for row in rows])]
    texts = [[step + spec.separator for step in row["steps"]] for row in rows]
    return read_as(ground.tokenizer, prompt_ids(ground.tokenizer, asked), texts, None)


def _graded(
    spec: StepModelSpec, ground: StageGround, model: Any, pad: int, rows: Sequence[Row]
) -> tuple[list[list[float]], list[list[bool]]]:
    """Chances and labels of the steps of held-out rows, those left out that are too long."""
    sequences, places = _encoded(spec, ground, rows)
    kept = [i for i, ids in enumerate(sequences) if len(ids) <= spec.max_length]
    odds = score_places(
        model,
        [sequences[i] for i in kept],
        [places[i] for i in kept],
        pad=pad,
        batch_size=spec.batch_size,
        device=ground.device,
        precision=ground.precision,
    )
    chances = iter(torch.sigmoid(odds).tolist())
    return [[next(chances) for _ in places[i]] for i in kept], [list(rows[i]["labels"]) for i in kept]
