"""The whole story of one trial, top to bottom: prepare, baseline, reference, train, evaluate.

Runs in a process of its own and knows nothing of MLflow: it appends events to its journal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from harness.algorithms import sharding
from harness.algorithms.base import Training, TrainJob
from harness.algorithms.trainers import ready_trainer, released
from harness.base.errors import UserErrors
from harness.base.world import leader_first, sharing_cores, total
from harness.config import closure, identity
from harness.evaluators.base import Evaluation, sound
from harness.models import coverage, prefixes
from harness.models.generation import own_distribution
from harness.models.loading import let_go
from harness.models.plain_lora import change_of, on_base
from harness.store import checkpoints
from harness.store.journal import Journal
from harness.tasks.curating.applying import by_margin, rules_of
from harness.tasks.curating.base import MarginRule
from harness.telemetry.clock import PhaseClock
from harness.trial.artifacts import keep, keep_data_card, load_trained, settle
from harness.trial.assemble import assemble
from harness.trial.behaviour import tell_fingerprints
from harness.trial.checks import check_data, same_rows
from harness.trial.context import Ground, note_stage, prepare_ground
from harness.trial.curve.best import forget
from harness.trial.curve.points import Curve
from harness.trial.data import load_replay
from harness.trial.heap import give_back
from harness.trial.job import Job
from harness.trial.keys import baseline_code
from harness.trial.records import account_for_roles, count_parameters, record, recorded, report_clock

NOT_THE_BASES = ("evaluators", "baseline", "at", "curve_pairs", "curve_prompts", "best_of")
"""Settings of evaluation that are keyed on their own, or say which base and not how it is judged."""


def run(job: Job, journal: Journal) -> None:
    """Prepare, judge the base, train, judge what came of it."""
    clock = PhaseClock(lambda kind, data: journal.write(kind, **data))
    with clock.phase("prepare"):
        setup = assemble(job.plain)
        data = check_data(setup)
        same_rows(setup, data, job.rows)
        ground = prepare_ground(setup, data, job, journal)
        keep_data_card(ground, data, journal)
    with clock.phase("baseline"):
        tell_fingerprints(ground, journal)
        seed_everything(setup.eval.seed)
        judge_base(ground, journal)
    if setup.algo.trains and job.mode == "train" and rules_of(setup.task, MarginRule):
        with clock.phase("reference"):
            ground = curated_by_margin(ground, journal)
    with clock.phase("prepare"):
        folders = ground.reward_folders(journal) if job.mode == "train" else {}
        model = ground.load_policy_base()
        expected = setup.adapter.expected_trainable(model) if setup.algo.trains else 0
    with clock.phase("reference"):
        reference = reference_scores(ground, model, journal)
        curve = None
        if setup.eval.at and job.mode == "train" and job.world.leads:
            curve = Curve(ground, model, clock, journal)
    if setup.algo.trains and job.mode == "train":
        with own_distribution(model, ground.tokenizer):  # a trainer writes into both its configurations
            trained = train(ground, model, expected, folders, clock, journal, curve)
        if not job.world.leads:
            return report_clock(clock, journal)
        model = trained
        with clock.phase("evaluate"):
            keep(ground, model, journal)
    elif setup.algo.trains:
        with clock.phase("prepare"):
            if setup.adapter.peft_config() is None:
                model = None  # all weights come from disk
            model = load_trained(ground, model)
    with clock.phase("evaluate"):
        seed_everything(setup.eval.seed)
        judge_trained(ground, model, reference, journal)
        if setup.algo.trains:
            settle(ground, model, journal)
            forget(ground.folder)
    report_clock(clock, journal)


def judge_base(ground: Ground, journal: Journal) -> None:
    """Run every evaluator on the base, or take its figures from the cache; nothing where ``eval.baseline`` is none."""
    setup, context = ground.setup, None
    taken: dict[str, str] = {}
    if setup.eval.baseline == "none":
        return
    quantization = ground.baseline_quantization
    for name, evaluator in setup.eval.active.items():
        reason = evaluator.not_applicable(setup.task, ground.data)
        if reason is not None:
            journal.write("note", message=f"{name}: {reason}", absent=f"baseline/{name}")
            continue
        inputs = {
            "base": ground.base_as_read,
            "rules": setup.task.judged_by,
            "data": evaluator.rows_read(ground.data),
            "evaluator": {"name": name, "class": type(evaluator).__qualname__, **asdict(evaluator)},
            "settings": {k: v for k, v in asdict(replace(setup.eval, evaluators={})).items() if k not in NOT_THE_BASES},
            "content": evaluator.contents(),
            "code": closure.code_digest(judged := baseline_code(setup, evaluator)),
            "dtype": str(ground.dtype),
            "precision": ground.precision,
            "device": ground.device,
            "chat": ground.chat,
            **({"before every prompt": asdict(ground.style.preamble)} if ground.style.preamble is not None else {}),
            "quantization": None if quantization is None else quantization.to_dict(),
            "versions": {**identity.library_versions(), **identity.versions_beside(judged)},
        }

        def build(folder: Path, evaluator: Any = evaluator, name: str = name) -> Mapping[str, Any]:
            nonlocal context
            context = context or ground.base_context(ground.load_base(), deployed=True)
            found = sound(name, evaluator.evaluate(context))
            (folder / "evaluation.json").write_text(json.dumps(asdict(found)))
            return {}

        entry = ground.cache.fetch(f"baseline-{name}", identity.digest(inputs), build, inputs=inputs)
        note_stage(journal, f"baseline-{name}", entry)
        found = sound(name, Evaluation(**json.loads((entry.path / "evaluation.json").read_text())), taken)
        taken |= dict.fromkeys(found.metrics, name)
        record(ground, journal, "baseline", found)
    del context
    free_memory(ground.device)


def reference_scores(ground: Ground, model: Any, journal: Journal) -> Any:
    """Log-probabilities of the held-out pairs under the model that training starts from."""
    from harness.evaluators.scoring import PairLogProbs, pair_log_probs

    if ground.data.eval_pairs.get(ground.setup.eval.split) and "preference" in ground.setup.eval.active:
        with leader_first(ground.world):
            return pair_log_probs(ground.base_context(model))
    empty = torch.zeros(0)
    return PairLogProbs(empty, empty, empty, empty, 0)


def curated_by_margin(ground: Ground, journal: Journal) -> Ground:
    """With the training rows that are left by the base's own margins, which are in the cache or scored now."""
    from harness.evaluators.scoring import TRAINING, score_pairs

    data, setup = ground.data, ground.setup

    def scored() -> Any:
        return score_pairs(ground.base_context(ground.load_policy_base()), data.train_pairs)

    with leader_first(ground.world):
        found = ground.of_the_base()(TRAINING, scored)
    free_memory(ground.device)
    margins = found.chosen / found.chosen_tokens.clamp(min=1) - found.rejected / found.rejected_tokens.clamp(min=1)
    left = by_margin(data, rules_of(setup.task), margins.tolist())
    if errors := setup.algo.problems(setup.task, left, setup.train):
        raise UserErrors(errors)
    for note in left.notes[len(data.notes) :]:
        journal.write("note", message=note)
    journal.write("metrics", values={f"data/{name}": float(rows) for name, rows in left.curation.items()})
    ground = replace(ground, curated=left)
    keep_data_card(ground, left, journal)
    return ground


def train(
    ground: Ground,
    model: Any,
    expected: int,
    folders: Mapping[str, Path],
    clock: PhaseClock,
    journal: Journal,
    curve: Curve | None = None,
) -> Any:
    """Train by TRL, with points of a ``curve`` on the way; returns the trained policy, unwrapped and in eval mode."""
    from harness.algorithms import changed
    from harness.algorithms.budget_meter import Meter
    from harness.algorithms.journal_callback import JournalCallback, Sealing

    setup = ground.setup
    with clock.phase("prepare"):
        seed_everything(setup.seed)
        meter = Meter(setup.algo, setup.train, ground.world)
        wish = ground.wish if setup.adapter.off_is_base and ground.world.size == 1 else None
        falls = setup.algo.family == "offline"
        callback = JournalCallback(journal, meter, setup.train.learning_rate, wish, falls)
        training = ready_trainer(
            setup.algo,
            TrainJob(
                model=model,
                reference=None,
                tokenizer=ground.tokenizer,
                adapter=setup.adapter,
                task=setup.task,
                data=ground.learned,
                rows=ground.rows,
                bare=ground.bare_rows,
                reward=setup.reward,
                train=setup.train,
                seed=setup.seed,
                output_dir=ground.folder / "checkpoints",
                device=ground.device,
                precision=ground.precision,
                clock=clock,
                references=ground.references(clock, journal),
                frozen=ground.place.frozen,
                folders=folders,
                callbacks=[callback],
                replay=load_replay(setup),
                world=ground.world,
                sharded=setup.parallel.sharded,
                cache=ground.cache.root,
            ),
        )
        meter.attach(training)
        callback.attach(training.trainer)
        if curve is not None:
            curve.attach(training, meter)
        start = {} if training.start is None else {"off_nats": training.start.off, "start_nats": training.start.on}
        journal.write("training", reference=training.reference, quantized=setup.adapter.quantized, **start)
        count_parameters(training.trainer.model, expected, journal)
        if (shared := prefixes.of(training.trainer.model)) is not None and shared.why:
            journal.write("note", message=f"prompts are computed anew for each completion: {shared.why}")
        if setup.plain["adapter"].get("targets") == coverage.ALL and (told := coverage.note(training.trainer.model)):
            journal.write("note", message=told)
        if setup.parallel.sharded:
            sharding.shard(training.trainer, ground.world, partial(account_for_roles, training, setup, journal))
        else:
            account_for_roles(training, setup, journal)
    checkpoint = checkpoints.newest(ground.folder / "checkpoints") if ground.resume else None
    if checkpoint:
        meter.restore(checkpoint)
        journal.write("note", message=f"continues from {checkpoint.name}")
    training.trainer.add_callback(Sealing(ground.world, wish))
    before = changed.Before(training.trainer.model)
    with clock.phase("train"), recorded(ground, journal), sharing_cores(ground.world):
        take_steps(training.trainer, checkpoint)
        if ground.device == "cuda":
            torch.cuda.synchronize()
    if shared is not None and shared.given:
        journal.write("metrics", values={"throughput/computed_share": shared.computed / shared.given})
    share = before.changed(training.trainer.model)
    journal.write("metrics", values={"params/changed": share})
    if not share:
        journal.write("note", message=changed.UNCHANGED)
    if curve is not None:
        curve.settle()
    seconds = clock.seconds()
    spent = meter.spent
    throughput = {"throughput/train_tokens_per_s": spent["tokens"] / (seconds["train"] + seconds.get("rollout", 0.0))}
    sampled = total(ground.world, [training.sampler.tokens])[0] if training.sampler is not None else 0
    if sampled:
        throughput["throughput/rollout_tokens_per_s"] = sampled / seconds["rollout"]
    budget = {f"budget/{unit}": amount for unit, amount in spent.items()}
    if setup.algo.family == "offline" and training.reference in ("base", "own"):
        # each row went through the reference as it came
        budget["budget/reference_rows"] = spent["prompts"]
    journal.write("metrics", values=throughput | budget)
    if setup.parallel.sharded:
        return in_one_piece(ground, training)
    trained = released(training.trainer, checkpointed=setup.train.gradient_checkpointing)
    change = None if setup.adapter.off_is_base else change_of(trained, training.matrices)
    del training
    if change is not None:  # what is judged and kept is on the base as it was
        del trained
        free_memory(ground.device)
        trained = on_base(change, ground.load_policy_base())
    free_memory(ground.device)
    return trained


def in_one_piece(ground: Ground, training: Training) -> Any:
    """What the processes of a trial trained in pieces, put together on the base by the leader; None for the others."""
    weights = sharding.trained_weights(training.trainer.model)
    training.trainer.optimizer = training.trainer.lr_scheduler = training.trainer.model = None
    training.trainer.model_wrapped = training.trainer.ref_model = None
    del training
    free_memory(ground.device)
    if not ground.world.leads:
        return None
    return sharding.put_together(ground.load_policy_base(), weights, ground.setup.adapter.peft_config())


def take_steps(trainer: Any, checkpoint: Path | None) -> None:
    """The trainer's steps, from ``checkpoint`` on where there is one."""
    from harness.evaluators.scoring import sampling_from_numbers

    with sampling_from_numbers(
        lambda: f"after step {trainer.state.global_step} the policy's probabilities are not finite"
    ):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if not trainer.state.global_step:
        raise RuntimeError("training ended before its first step: the trainer found no batch of rows")


def judge_trained(ground: Ground, model: Any, reference: Any, journal: Journal) -> None:
    """Run every evaluator on the trained model; what one of them computed serves the others."""
    context = ground.eval_context(model, reference)
    taken: dict[str, str] = {}
    for name, evaluator in ground.setup.eval.active.items():
        if evaluator.not_applicable(ground.setup.task, ground.data) is not None:
            continue
        found = sound(name, evaluator.evaluate(context), taken)
        taken |= dict.fromkeys(found.metrics, name)
        record(ground, journal, "eval", found)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch: each phase starts anew, so that a cached phase changes no later one."""
    from transformers import set_seed

    set_seed(seed)


def free_memory(device: str) -> None:
    """Give freed memory back before the next phase is measured."""
    let_go(device)
    give_back()
