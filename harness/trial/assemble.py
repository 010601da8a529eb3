"""From a composed configuration to a trial: components built, knobs injected, combinations checked, keys computed.

Torch-free, so that everything wrong with a sweep is said before anything heavy is imported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from harness.algorithms.base import Algorithm
from harness.base.errors import UserError, UserErrors
from harness.base.records import Trial
from harness.config import closure, identity
from harness.config.compose import build
from harness.config.devices import compute_device
from harness.config.train import Train, fill_from_recipe, train_problems, with_lengths
from harness.evaluators.base import Eval
from harness.models import Model
from harness.models.adapters import Adapter
from harness.models.precision import precision_problems
from harness.rewards.base import Reward
from harness.tasks.base import Task, TaskData
from harness.tasks.conversation import Style, is_conversational, style_of
from harness.trial.data import audited, cache_of, load_data
from harness.trial.keys import judging_code, training_code

GROUPS: dict[str, type] = {
    "algo": Algorithm,
    "adapter": Adapter,
    "model": Model,
    "task": Task,
    "reward": Reward,
    "train": Train,
    "eval": Eval,
}
SWEEP_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")
LENGTHS = ("max_length", "max_completion_length")
"""Of evaluation and reward: those of training, where they are null."""
NOT_IN_TRAIN_KEY = ("logging_steps", "checkpoint_steps")


@dataclass(frozen=True)
class Setup:
    """The components of one trial, built and checked.

    Attributes:
        reward: bound to the task; None where the algorithm takes none.
        unused: knobs that this trial ignores, such as ``rank`` under full fine-tuning.
        plain: the composed configuration it came from, for the worker to build again.
    """

    algo: Algorithm
    adapter: Adapter
    model: Model
    task: Task
    reward: Reward | None
    train: Train
    eval: Eval
    seed: int
    sweep: str
    unused: tuple[str, ...]
    plain: Mapping[str, Any]

    @property
    def rank(self) -> int | None:
        """The adapter's rank, where it has one."""
        return getattr(self.adapter, "rank", None) if self.algo.trains else None

    @property
    def beta(self) -> float | None:
        """The algorithm's beta, where it has one."""
        return self.algo.beta


def assemble(plain: Mapping[str, Any]) -> Setup:
    """Build all components of a composed configuration; raises ``UserErrors`` with everything wrong."""
    nodes = {name: dict(plain[name]) if plain.get(name) else None for name in GROUPS}
    errors: list[UserError] = []
    unused: list[str] = []
    plugins = tuple(plain.get("plugins") or ())
    for group, knob in (("algo", "beta"), ("adapter", "rank")):
        default = _class_default(nodes[group], knob, plugins)
        _inject(nodes[group], knob, plain.get(knob), group, errors, unused, default)

    built: dict[str, Any] = {}
    train_node = nodes["train"] or {}
    for name in ("model", "algo", "adapter", "task", "reward", "eval"):
        if name in ("reward", "eval") and (node := nodes[name]) is not None:
            nodes[name] = {k: train_node.get(k) if v is None and k in LENGTHS else v for k, v in node.items()}
        if nodes[name] is None:
            built[name] = None
            if name != "reward":
                errors.append(UserError("a choice is required", key=name, value=None, fix=f"see conf/{name}/"))
            continue
        try:
            built[name] = build(nodes[name], path=name, plugins=plugins, base=GROUPS[name])
        except UserErrors as found:
            errors += found.errors
        if name == "model":
            train_node = with_lengths(train_node, built[name].context_length() if name in built else None)
    algo: Any = built.get("algo")
    adapter: Any = built.get("adapter")
    if algo is not None and adapter is not None:
        train_node = fill_from_recipe(train_node, algo.recipes, adapter.recipe)
    try:
        built["train"] = build(train_node, path="train", plugins=plugins, base=Train)
    except UserErrors as found:
        errors += found.errors
    seed = plain.get("seed", 0)
    errors += _check_top(plain)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        errors.append(UserError("must be a whole number of at least 0", key="seed", value=seed, fix="seed=0"))
    if errors or algo is None or adapter is None:
        raise UserErrors(errors)

    if algo.trains:
        errors += train_problems(built["train"], algo.name)
        errors += precision_problems(built["model"], adapter, built["train"])
        adapter = _without_dropout(algo, adapter, unused)
    reward = built["reward"] if algo.family == "online" else None
    if algo.family == "online":
        if reward is None:
            errors.append(UserError(f"{algo.name} needs a reward", key="reward", value=None, fix="reward=verifier"))
        else:
            errors += reward.problems(built["task"])
    elif plain.get("reward") is not None:
        unused.append("reward")
    errors += built["model"].problems()
    if reward is not None and not errors:
        try:
            reward = reward.bind(built["task"], adapter, built["train"].recipe)
        except UserError as error:
            errors.append(error)
    if errors:
        raise UserErrors(errors)
    return Setup(
        algo=algo,
        adapter=adapter,
        model=built["model"],
        task=built["task"],
        reward=reward,
        train=built["train"],
        eval=built["eval"],
        seed=seed,
        sweep=str(plain["sweep"]),
        unused=tuple(unused),
        plain=plain,
    )


def check_data(setup: Setup) -> TaskData:
    """Load the task's rows and check the combination with the algorithm; raises ``UserErrors``."""
    data = load_data(setup.task, cache_of(setup))
    errors = [*setup.model.task_problems(setup.task), *setup.algo.problems(setup.task, data, setup.train)]
    errors += setup.reward.data_problems(data) if setup.reward is not None else []
    for name, evaluator in setup.eval.active.items():
        reason = evaluator.not_applicable(setup.task, data)
        if reason is None and setup.eval.split not in {*data.eval_pairs, *data.eval_prompts}:
            errors.append(
                UserError(
                    f"the data has no such split, which {name} needs",
                    key="eval.split",
                    value=setup.eval.split,
                )
            )
    errors += _leaks(setup, data)
    if errors:
        raise UserErrors(errors)
    return data


def _leaks(setup: Setup, data: TaskData) -> list[UserError]:
    """Held-out prompts that training shows, if they are too many."""
    if not setup.eval.active:
        return []
    found = audited(data)
    if found.leaked <= setup.eval.max_leaked:
        return []
    example = found.leaks[0]
    return [
        UserError(
            f"{found.leaked:.1%} of the held-out prompts are shown in training, such as {example.held_out[:60]!r} "
            f"({example.how}: {example.training[:60]!r}), more than eval.max_leaked={setup.eval.max_leaked}",
            key="task",
            value=type(setup.task).__name__.lower(),
            fix="remove them from the training rows, or allow them: eval.max_leaked=1",
        )
    ]


def with_baseline(setup: Setup, choice: str | None) -> Setup:
    """The trial with ``eval.baseline`` resolved to ``choice`` where it is ``auto``; None leaves it."""
    if choice is None or setup.eval.baseline != "auto":
        return setup
    plain = {**setup.plain, "eval": {**setup.plain["eval"], "baseline": choice}}
    return replace(setup, eval=replace(setup.eval, baseline=choice), plain=plain)  # type: ignore[arg-type]


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
        **({f"content of reward.{k}": v for k, v in setup.reward.contents().items()} if setup.reward else {}),
        "training code": code,
        **{f"version of {k}": v for k, v in versions.items()},
    }
    eval_why = {
        **{k: str(v) for k, v in identity.flatten(evaluation).items()},
        **{f"content of {n}.{k}": v for n, e in setup.eval.active.items() for k, v in e.contents().items()},
        "evaluation code": closure.code_digest(judged),
        **{f"version of {k}": v for k, v in identity.versions_beside(judged).items()},
    }
    return Trial(
        trial_id=_trial_id(setup, keyed),
        sweep=setup.sweep,
        config={**training, **evaluation, "seed": setup.seed, "beta": setup.beta, "rank": setup.rank},
        train_key=identity.digest(why),
        eval_key=identity.digest({"train": identity.digest(why), **eval_why}),
        digests={"dataset": dataset, "base": base, "code": code, "evaluators": identity.digest(eval_why)},
        why={**why, **{f"evaluation: {k}": v for k, v in eval_why.items()}},
    )


def training_config(setup: Setup) -> dict[str, Any]:
    """The effective configuration of training; knobs that the trial does not use are left out."""
    adapter = {"name": setup.adapter.name, **_plain_fields(setup.adapter)}
    quantization = {k: v for k, v in adapter.items() if k in ("quant_type", "double_quantization")}
    config: dict[str, Any] = {
        "algo": {"name": setup.algo.name, **_plain_fields(setup.algo, leave_out=("recipes",))},
        "adapter": adapter
        if setup.algo.trains
        else {"name": "none", "quantized": setup.adapter.quantized, **quantization},
        "model": {"name": setup.model.name, **_plain_fields(setup.model)},
        "task": {"name": type(setup.task).__name__.lower(), **_plain_fields(setup.task)},
    }
    if setup.algo.trains:
        config["train"] = {**_plain_fields(setup.train), "seed": setup.seed}
    if setup.reward is not None:
        config["reward"] = {
            "name": type(setup.reward).__name__.lower(),
            **_plain_fields(setup.reward),
        }
    return config


def style_for(setup: Setup, data: TaskData, tokenizer: Any) -> Style:
    """How the trial's rows are rendered: messages always by a template, a plain one if need be."""
    some = data.train_pairs or data.train_unpaired or data.train_prompts or data.retention
    wanted = setup.model.chat_template == "auto"
    return style_of(tokenizer, conversational=is_conversational(some), wanted=wanted)


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
    parts.append(identity.digest(training, 8))
    return "-".join(p for p in parts if p)


def _inject(
    node: dict[str, Any] | None,
    field: str,
    value: Any,
    group: str,
    errors: list[UserError],
    unused: list[str],
    default: Any,
) -> None:
    """Move a top-level knob into the node it is about; null in the node means the class's own default."""
    if node is None:
        return
    own = node.get(field)
    has_knob = default is not None
    if value is None:
        if own is None and field in node and has_knob:
            del node[field]
        return
    if not has_knob:
        unused.append(field)
    elif own is None or own == value:
        node[field] = value
    else:
        errors.append(
            UserError(
                f"{field} and {group}.{field} are both set, to different values",
                key=f"{group}.{field}",
                value=f"{own} against {field}={value}",
                fix=f"set {field} alone",
            )
        )


def _without_dropout(algo: Algorithm, adapter: Adapter, unused: list[str]) -> Adapter:
    """Online algorithms train without dropout: the ratio of a pass with it to one without would clip on noise."""
    if algo.family != "online" or not getattr(adapter, "dropout", 0.0):
        return adapter
    unused.append("adapter.dropout")
    return replace(adapter, dropout=0.0)  # type: ignore[call-arg]


def _class_default(node: dict[str, Any] | None, field: str, plugins: tuple[str, ...]) -> Any:
    """Default of a field of the class that a node names; None where it has none or may not be imported."""
    from harness.config.compose import import_component

    try:
        target = import_component((node or {}).get("_target_", ""), key="", plugins=plugins)
    except UserError:
        return None
    for item in fields(target) if is_dataclass(target) else ():
        if item.name == field:
            return item.default
    return None


def _check_top(plain: Mapping[str, Any]) -> list[UserError]:
    """Top-level values that are no component's."""
    errors = []
    if not isinstance(plain.get("resume", True), bool):
        errors.append(UserError("must be true or false", key="resume", value=plain["resume"], fix="resume=false"))
    name = plain.get("sweep")
    if not isinstance(name, str | int) or not SWEEP_NAME.fullmatch(str(name)):
        errors.append(
            UserError(
                "must be a plain name: letters, digits, dot, dash and underscore",
                key="sweep",
                value=name,
                fix="sweep=monday",
            )
        )
    return errors


def _plain_fields(component: Any, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """A component's fields as plain containers, nested components with their class names."""

    def plain(value: Any) -> Any:
        if is_dataclass(value) and not isinstance(value, type):
            return {
                "class": type(value).__name__,
                **{f.name: plain(getattr(value, f.name)) for f in fields(value) if f.metadata.get("told", True)},
            }
        if isinstance(value, Mapping):
            return {str(k): plain(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        return value

    told = [f for f in fields(component) if f.name not in leave_out and f.metadata.get("told", True)]
    return {f.name: plain(getattr(component, f.name)) for f in told}
