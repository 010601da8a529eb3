"""What a trial is known by: its id, its folder, and the keys under which its results hold. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any

from harness.base.records import Trial
from harness.config import closure, identity
from harness.config.devices import compute_device
from harness.tasks.base import TaskData, digest_of
from harness.tasks.curating.applying import rules_of
from harness.tasks.curating.base import MarginRule
from harness.trial.assemble import Setup, with_baseline
from harness.trial.data import load_replay
from harness.trial.keys import judging_code, training_code

NOT_IN_TRAIN_KEY = ("logging_steps", "checkpoint_steps")
CURVE = ("at", "curve_pairs", "curve_prompts", "best_of")
"""Settings of ``eval`` about the curve, which is recorded while training and says nothing of the final evaluation."""
MARGINS_READ = ("batch_size", "max_length")
"""Settings of ``eval`` that change the base's margins of the training pairs, where curation asks for them."""
CURVE_READS = ("split", "batch_size", "max_length", "max_completion_length", "seed")
"""Other settings of ``eval`` that change a point of the curve."""


def identify(setup: Setup, data: TaskData, device: str | None = None) -> Trial:
    """The trial's id and keys.

    Args:
        setup: its components.
        data: its rows.
        device: kind of device that it computes on; None takes what ``runner.device`` comes to here.
    """
    training = training_config(setup)
    setup = with_baseline(setup, "deployed")
    evaluation = {"eval": _plain_fields(setup.eval)}
    judging = {"eval": _plain_fields(setup.eval, leave_out=CURVE)}
    dataset = data.digest
    base = setup.model.recipe_digest(setup.task)
    trained, judged = training_code(setup), judging_code(setup.eval.active.values(), setup.task)
    code = closure.code_digest(trained)
    keyed = {
        g: {k: v for k, v in c.items() if k not in NOT_IN_TRAIN_KEY} if g == "train" else c for g, c in training.items()
    }
    versions = {**identity.library_versions(), **identity.versions_beside(trained)}
    why = {
        **{f"config.{k}": str(v) for k, v in identity.flatten(keyed).items()},
        "data": dataset,
        "base": base,
        "device": device or compute_device(str((setup.plain.get("runner") or {}).get("device", "auto"))),
        **{f"content of prompt.{k}": v for k, v in setup.prompt.contents().items()},
        **({"content of train.replay": digest_of(rows)} if (rows := load_replay(setup)) else {}),
        **({f"content of reward.{k}": v for k, v in setup.reward.contents().items()} if setup.reward else {}),
        **{f"curve.{k}": str(v) for k, v in curve_config(setup).items()},
        **{f"margins.{k}": str(getattr(setup.eval, k)) for k in MARGINS_READ if rules_of(setup.task, MarginRule)},
        "training code": code,
        **{f"version of {k}": v for k, v in versions.items()},
    }
    eval_why = {
        **{k: str(v) for k, v in identity.flatten(judging).items()},
        **{f"content of {n}.{k}": v for n, e in setup.eval.active.items() for k, v in e.contents().items()},
        **{f"rule.{k}": str(v) for k, v in identity.flatten(setup.task.judged_by).items()},
        "evaluation code": closure.code_digest(judged),
        **{f"version of {k}": v for k, v in identity.versions_beside(judged).items()},
    }
    return Trial(
        trial_id=_trial_id(setup, keyed),
        sweep=setup.sweep,
        config={**training, **evaluation, "seed": setup.seed, "beta": setup.beta, "rank": setup.rank},
        train_key=identity.digest(why),
        eval_key=identity.digest({"train": identity.digest(why), **eval_why}),
        digests={
            "dataset": dataset,
            "held_out": data.held_out_digest,
            "base": base,
            "code": code,
            "evaluators": identity.digest(eval_why),
        },
        why={**why, **{f"evaluation: {k}": v for k, v in eval_why.items()}},
    )


def curve_config(setup: Setup) -> dict[str, Any]:
    """What the points of the curve depend on; empty without one.

    It is part of the train key: points are taken while training, so a trial that is asked for others is trained again.
    It is no part of the id, so that this happens in the folder that the trial has, unless it decides which policy is
    kept (``train.keep=best``).
    """
    settings = setup.eval
    return (
        {"at": sorted(settings.at), **{k: getattr(settings, k) for k in (*CURVE[1:], *CURVE_READS)}}
        if settings.at
        else {}
    )


def training_config(setup: Setup) -> dict[str, Any]:
    """The effective configuration of training; knobs that the trial does not use are left out."""
    adapter = {"name": setup.adapter.name, **_plain_fields(setup.adapter)}
    quantization = {k: v for k, v in adapter.items() if k in ("bits", "quant_type", "double_quantization")}
    config: dict[str, Any] = {
        "algo": {"name": setup.algo.name, **_plain_fields(setup.algo, leave_out=("presets", "search"))},
        "adapter": adapter
        if setup.algo.trains
        else {"name": "none", "quantized": setup.adapter.quantized, **quantization},
        "model": {"name": setup.model.name, **_plain_fields(setup.model)},
        "task": {"name": type(setup.task).__name__.lower(), **_plain_fields(setup.task)},
    }
    if setup.prompt:
        config["prompt"] = _plain_fields(setup.prompt)
    if setup.algo.trains:
        config["train"] = {**_plain_fields(setup.train), "seed": setup.seed}
        if setup.parallel.processes > 1:
            config["parallel"] = _plain_fields(setup.parallel)
        if setup.train.keep == "best":
            config["curve"] = curve_config(setup)  # it decides which policy is kept
    if setup.reward is not None:
        config["reward"] = {
            "name": type(setup.reward).__name__.lower(),
            **_plain_fields(setup.reward),
        }
    return config


def folder_of(setup: Setup, trial: Trial) -> Path:
    """``outputs/<sweep>/<trial id>``."""
    return Path(str(setup.plain.get("outputs", "outputs"))) / trial.sweep / trial.trial_id


def _trial_id(setup: Setup, training: Mapping[str, Any]) -> str:
    parts = [setup.algo.name, setup.adapter.name if setup.algo.trains or setup.adapter.quantized else ""]
    if setup.beta is not None:
        parts.append(f"b{setup.beta:g}")
    if setup.rank is not None:
        parts.append(f"r{setup.rank}")
    if setup.algo.trains:
        parts.append(f"s{setup.seed}")
    parts.append(identity.digest(_as_spelled(training), 8))
    return "-".join(p for p in parts if p)


def _as_spelled(training: Mapping[str, Any]) -> dict[str, Any]:
    """With ``train.preset`` as it was called when the first trials were named: a folder outlives the words."""
    spelled = dict(training)
    if "train" in spelled:
        spelled["train"] = {"recipe" if k == "preset" else k: v for k, v in spelled["train"].items()}
    return spelled


def _plain_fields(component: Any, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """A component's fields as plain containers, nested components with their class names."""

    def plain(value: Any) -> Any:
        if is_dataclass(value) and not isinstance(value, type):
            return {
                "class": type(value).__name__,
                **{f.name: plain(getattr(value, f.name)) for f in fields(value) if _told(f, value)},
            }
        if isinstance(value, Mapping):
            return {str(k): plain(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        return value

    told = [f for f in fields(component) if f.name not in leave_out and _told(f, component)]
    return {f.name: plain(getattr(component, f.name)) for f in told}


def _told(field: Field[Any], component: Any) -> bool:
    """Whether a field is part of the configuration (``records.unless_default``)."""
    told = field.metadata.get("told", True)
    if told != "unless default":
        return bool(told)
    default = field.default if field.default_factory is MISSING else field.default_factory()
    return getattr(component, field.name) != default
