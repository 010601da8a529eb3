"""What a rehearsed step is given: the heaviest batches, the longest rollouts, references of no value. Imports torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from harness.algorithms.base import Training
from harness.algorithms.trl_seam import PairTrainer, sampling_model
from harness.rehearsal import standins
from harness.rehearsal.alike import Foreseen
from harness.rehearsal.fakes import FakeTensors, outside
from harness.rehearsal.rows import heaviest_batch, lengthened
from harness.rehearsal.tracker import Tracker
from harness.stages.reference import column_names
from harness.trial.assemble import Setup


@dataclass(frozen=True)
class References:
    """In place of the stage: scores the longest batch, and has a value of 0 for every row."""

    tracker: Tracker
    fakes: FakeTensors | None
    fill: int | None
    foreseen: Foreseen

    def columns(self, trainer: Any, dataset: Any, batch_size: int) -> dict[str, list[float]]:
        """As ``stages.reference``."""
        self.tracker.enter("reference")
        with outside():
            batch = heaviest_batch(dataset, trainer.data_collator, batch_size, self.fill)
            self.foreseen.remember(batch)
        batch = trainer.on_device(batch) if self.fakes is None else self.fakes.take_in(batch)
        trainer.compute_ref_log_probs(trainer.model.eval(), batch)
        trainer.model.train()
        self.tracker.enter("load")
        return {name: [0.0] * len(dataset) for name in column_names(dataset)}


def take_worst_batches(
    trainer: Any, fill: int | None, fakes: FakeTensors | None, formed: Callable[[Any], Any] | None, foreseen: Foreseen
) -> None:
    """Batches are made of real tensors, lengthened where asked, and taken into the world of fakes."""
    load = trainer.get_train_dataloader

    def batches() -> list[Any]:
        with outside():
            args, count = trainer.args, trainer.args.gradient_accumulation_steps
            if formed is None:
                size = args.per_device_train_batch_size
                real = [heaviest_batch(trainer.train_dataset, trainer.data_collator, size, fill)] * count
            else:
                real = [formed(lengthened(batch, fill)) for batch in itertools.islice(load(), count)]
            for batch in real:
                foreseen.remember(batch)
        if not real:
            raise RuntimeError("the trainer drew no batch from the longest rows")
        return [fakes.take_in(batch) if fakes is not None else batch for batch in real]

    trainer.get_train_dataloader = batches
    replayed = trainer.replayed if isinstance(trainer, PairTrainer) else None
    if replayed is not None:
        draw = replayed.batch

        def worst(number: int) -> Any:
            with outside():
                real = lengthened(draw(number), fill)
                foreseen.remember(real)
            return real if fakes is None else fakes.take_in(real)

        replayed.batch = worst


def sample_longest(
    training: Training,
    setup: Setup,
    fill: bool,
    fakes: FakeTensors | None,
    engine: Callable[[], None],
    layers: int | None,
) -> None:
    """Rollouts of the longest completions; on fakes their first and last tokens, without reading any.

    ``engine`` takes what vLLM would, where that samples; ``layers`` are the whole model's.
    """
    sampler, trainer = training.sampler, training.trainer
    if sampler is None:
        return
    trainer.layers = layers
    tokenize, room = sampler.prompts, setup.train.max_length - setup.train.max_completion_length
    if fill:
        sampler.prompts = lambda rows: [(list(ids) * room)[:room] for ids in tokenize(rows)]
    if fakes is None:
        sampler.generation_config.min_new_tokens = setup.train.max_completion_length
        return

    def sampled(prompt_ids: list[list[int]], *_: Any, **__: Any) -> tuple[list[list[int]], None]:
        width, rows = max(map(len, prompt_ids)), trainer.at_once(prompt_ids)
        said = [[width % 7 + 3] * setup.train.max_completion_length for _ in prompt_ids], None
        if setup.train.rollout == "vllm":
            engine()
            return said
        group = 1 if rows is None else min(rows, getattr(setup.algo, "num_generations", 1))
        ids = torch.ones((-(-min(rows or len(prompt_ids), len(prompt_ids)) // group), width), dtype=torch.long)
        with (
            sampling_model(trainer) as model,
            torch.no_grad(),
            trainer.to_sample(),
            standins.ends_of_sampling(model, group),
        ):
            model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=sampler.generation_config
            )
        return said

    sampler.complete = sampled
