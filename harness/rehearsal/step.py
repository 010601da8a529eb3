"""One training step of a trial's own trainer, and the evaluation after it, with every live byte counted.

The step is the heaviest that the trial can take: the longest rows of its data in one micro-batch, the optimizer's
state already there, a gradient from the micro-batch before where there are several. Runs on fake tensors to predict,
or on real ones to see that the prediction holds. Imports torch.
"""

from __future__ import annotations

import copy
import gc
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from harness.algorithms.arguments import optimizer_name
from harness.algorithms.base import Training, TrainJob
from harness.algorithms.sharding import shard
from harness.algorithms.trainers import ready_trainer, released
from harness.base.world import World
from harness.config.train import Budget, Train
from harness.models import prefixes
from harness.models.precision import Place
from harness.rehearsal import judging, pieces, standins, watch
from harness.rehearsal.alike import Foreseen, alike_by
from harness.rehearsal.fakes import FakeTensors, fake_tensors
from harness.rehearsal.rows import as_packed, longest, longest_replayed
from harness.rehearsal.timeline import Timeline
from harness.rehearsal.tracker import Tracker, as_cuda_rounds, exact
from harness.rehearsal.worst import References, sample_longest, take_worst_batches
from harness.tasks.base import TaskData
from harness.trial.assemble import Setup
from harness.trial.curve.undisturbed import undisturbed

SCORED_IN = ("train", "reference")
"""Phases in which a mask of a batch's shape is that of its scored tokens."""


@dataclass(frozen=True)
class Scene:
    """A trial, and what its step is taken on.

    Attributes:
        tokenizer: as the trial uses it.
        rows: gives rows in the form the model wants.
        place: where its tensors are, and in which numbers.
        bare: the same as ``rows`` without what stands before the policy's prompts; None: nothing does.
        cuda: whether the trial would run on a GPU.
        fill: rows as long as ``train.max_length`` allows, in place of the data's longest.
        load: loads the base, 4-bit where it is given a quantization; None takes tensors without data.
        folders: of the stages that the reward needs, by their keys; for real tensors.
        layers: of the whole model, where fewer of them are rehearsed; None: what is given is whole.
    """

    setup: Setup
    data: TaskData
    tokenizer: Any
    rows: judging.Rows
    place: Place
    cuda: bool = False
    fill: bool = False
    bare: judging.Rows | None = None
    load: Callable[[Any | None], Any] | None = None
    folders: Mapping[str, Path] = field(default_factory=dict)
    layers: int | None = None

    @property
    def fake(self) -> bool:
        """Whether tensors have no data."""
        return self.load is None

    @cached_property
    def heaviest(self) -> TaskData:
        """The rows to train on."""
        return longest(self.setup, self.data, self.tokenizer, self.rows)

    @cached_property
    def held_out(self) -> tuple[list[Any], list[Any]]:
        """What is scored and what is sampled (``judging.sequences``)."""
        return judging.sequences(self.setup, self.data, self.tokenizer, self.rows, fill=self.fill)


def rehearse(scene: Scene, config: Any, *, evaluation: bool = True) -> Timeline:
    """Record one step for a model of the transformers configuration ``config``, which may have fewer layers.

    Args:
        scene: the trial and its tensors.
        config: of the model.
        evaluation: also what comes before and after training.
    """
    setup = scene.setup
    tracker = Tracker(as_cuda_rounds if scene.cuda else exact, config.get_text_config().vocab_size)
    judged = scene.held_out if evaluation else ([], [])

    def judge(model: Any, phase: str, *parts: Any) -> None:
        if any(judged):
            tracker.enter(phase)
            judging.judge(
                model,
                setup,
                scene.tokenizer,
                scene.rows,
                *parts,
                place=scene.place,
                fake=scene.fake,
                fill=scene.fill,
                layers=scene.layers,
            )

    with ExitStack() as stack:
        if setup.parallel.sharded:
            stack.enter_context(pieces.one_of(setup.parallel.processes))
            stack.enter_context(pieces.seen_by(tracker))
        fakes = stack.enter_context(fake_tensors(cuda=scene.cuda)) if scene.fake else None
        foreseen = Foreseen(setup, fill=scene.fill)
        tracker.lets_through = lambda shape: foreseen.scored(shape) if tracker.phase in SCORED_IN else None
        stack.enter_context(alike_by(foreseen))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(watch.booked(tracker))
        stack.enter_context(tracker)
        quantization = setup.adapter.quantization(scene.place.unpacked)
        if any(judged) and setup.eval.baseline != "none":
            of_base = quantization if setup.eval.baseline == "quantized" else None
            judge(_base(scene, config, tracker, of_base), "baseline", *judged)
            gc.collect()
        model = _base(scene, config, tracker, quantization)
        judge(model, "reference", judged[0], [])
        if setup.algo.trains:
            tracker.enter("load")
            taken = setup.train.vllm.bytes_for(model.num_parameters())

            def engine() -> None:
                with tracker.creating("engine"):
                    torch.empty(taken, dtype=torch.uint8)

            training = _training(scene, model, folder, tracker, fakes, foreseen)
            del model
            watch.watch_owners(training, tracker)
            packs = setup.algo.packs
            fill = setup.train.max_length if scene.fill or packs else None
            formed = as_packed if packs else None if setup.algo.family == "offline" else lambda batch: batch
            take_worst_batches(training.trainer, fill, fakes, formed, foreseen)
            sample_longest(training, setup, scene.fill, fakes, engine, scene.layers)
            training.trainer.train()
            if setup.eval.at:  # a point of the curve: what training holds is there beside it
                with undisturbed(training.trainer.model):
                    judge(training.trainer.model, "evaluate", *judged)
            if setup.parallel.sharded:  # put together on a base that is loaded anew
                model = None
            else:
                model = released(training.trainer, checkpointed=setup.train.gradient_checkpointing)
            del training
            gc.collect()  # of the cycles that a trainer is made of
            if model is None:
                model = _base(scene, config, tracker, quantization, phase="evaluate")
        judge(model, "evaluate", *judged)
        if any(judged) and setup.algo.trains:
            _beside_the_trained(scene, config, tracker, judge)
        if evaluation and setup.algo.trains and judging.merges(setup):
            tracker.enter("evaluate")
            model.merge_and_unload()
    return tracker.timeline()


def _beside_the_trained(scene: Scene, config: Any, tracker: Tracker, judge: Callable[..., None]) -> None:
    """What evaluators hold beside the trained model: the base again, or a merged copy, then judges of their own."""
    setup = scene.setup
    active = [e for e in setup.eval.active.values() if e.not_applicable(setup.task, scene.data) is None]
    if setup.adapter.peft_config() is None and any(e.compares for e in active):
        before = _base(scene, config, tracker, None, phase="evaluate", owner="reference")
        judge(before, "evaluate", *scene.held_out)
        del before
        gc.collect()
    if judging.can_merge(setup) and any(e.merges for e in active):  # what it is merged into, not quantized
        merged = _base(scene, config, tracker, None, phase="evaluate", owner="reference")
        judge(merged, "evaluate", *scene.held_out)
        del merged
        gc.collect()
    for evaluator in active:
        if (reward := evaluator.judge_model) is not None:
            tracker.enter("evaluate")
            judging.score(setup, reward, scene, tracker)
            gc.collect()


def _base(
    scene: Scene,
    config: Any,
    tracker: Tracker,
    quantization: Any | None,
    *,
    phase: str = "load",
    owner: str = "weights",
) -> Any:
    """The base, its weights booked and its layers marked."""
    tracker.enter(phase)
    if scene.load is not None:
        with tracker.creating(owner):
            model = scene.load(quantization)
    else:
        with tracker.unseen():  # on the host
            model = made(config, scene.setup, scene.place, quantization)
        tracker.own([*model.parameters(), *model.buffers()], owner)
        if quantization is not None:  # each weight is whole on the device before it is quantized
            torch.empty(standins.largest(model), dtype=scene.place.dtype)
    watch.mark_layers(model, config, tracker)
    prefixes.share(model, scene.setup.train.share_prefix)
    prefixes.stop(model)
    tracker.enter(phase)
    return model.eval()


def made(config: Any, setup: Setup, place: Place, quantization: Any | None) -> Any:
    """A model of this configuration without weights of value, 4-bit where ``quantization`` asks for it."""
    from transformers import AutoModelForCausalLM

    from harness.models.loading import attention_option, rehearsed

    before = torch.get_default_dtype()
    torch.set_default_dtype(place.dtype)
    try:
        model = AutoModelForCausalLM.from_config(
            copy.deepcopy(config), dtype=place.dtype, **attention_option(rehearsed(setup.model.attention))
        )
    finally:
        torch.set_default_dtype(before)
    return model if quantization is None else standins.quantize(model, place.unpacked, quantization)


def shortened(setup: Setup, data: TaskData) -> tuple[Any, Train]:
    """Algorithm and knobs of one optimizer step, with as few micro-batches as show accumulation, rollouts as large."""
    algo = setup.algo
    algo = algo.with_sharing(algo.shares_reference(setup.train, data))  # which one step would not do of itself
    algo = algo.unpacked()  # packed sequences are as long as the limit, whatever the rows (``as_packed``)
    train = setup.train
    assert train.batch_size and train.micro_batch_size
    micro = train.micro_batch_size * (1 if algo.shares_micro_batch else setup.parallel.processes)
    accumulation = max(1, train.batch_size // micro)
    few = next((n for n in range(2, accumulation + 1) if accumulation % n == 0), 1)
    short = replace(
        train,
        steps=1,
        epochs=None,
        budget=Budget(),
        batch_size=train.micro_batch_size * few,
        checkpoint_steps=None,
        rollout="hf",  # vLLM's part is known (``sample_longest``)
    )
    return algo.with_rollouts(accumulation // few), short


def _training(
    scene: Scene, model: Any, folder: Path, tracker: Tracker, fakes: FakeTensors | None, foreseen: Foreseen
) -> Training:
    setup, place = scene.setup, scene.place
    algo, train = shortened(setup, scene.data)
    sharded = setup.parallel.sharded
    name = optimizer_name(setup.train, setup.adapter, "cuda" if scene.cuda else "cpu", sharded=sharded)
    stands_in = scene.fake and "8bit" in name
    clock: Any = watch.Clock(tracker)
    by_name = pieces.ByName()
    job = TrainJob(
        model=model,
        reference=None,
        tokenizer=scene.tokenizer,
        adapter=setup.adapter,
        task=setup.task,
        data=scene.heaviest,
        rows=scene.rows,
        bare=scene.bare,
        reward=setup.reward.without_weights() if scene.fake and setup.reward is not None else setup.reward,
        train=replace(train, optimizer="adamw_torch_fused" if stands_in else name),
        seed=setup.seed,
        output_dir=folder,
        device=place.device,
        precision=place.precision,
        clock=clock,
        frozen=place.frozen,
        references=References(tracker, fakes, setup.train.max_length if scene.fill else None, foreseen),
        folders=scene.folders,
        callbacks=[*([by_name] if sharded else []), watch.Steady(tracker)],
        replay=longest_replayed(setup),
        probes=False,  # tensors without data are near nothing
        sharded=sharded,
    )
    training = ready_trainer(algo, job)
    trainer = training.trainer
    if fakes is not None:
        standins.keep_layers(trainer.model)
    if sharded:
        by_name.follow(trainer)
        shard(trainer, World(0, setup.parallel.processes), lambda: watch.watch_owners(training, tracker))
    if stands_in:
        create = trainer.create_optimizer

        def stand_in(*_: Any) -> Any:
            trainer.optimizer = standins.EightBitAdamW(create().param_groups, paged="paged" in name)
            return trainer.optimizer

        trainer.create_optimizer = stand_in
    return training
