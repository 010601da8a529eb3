"""From a composed configuration to a trial's components: built, knobs injected, combinations checked.

Torch-free, so that everything wrong with a sweep is said before anything heavy is imported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from harness.algorithms.base import Algorithm
from harness.base.errors import UserError, UserErrors
from harness.config import renamed, rules
from harness.config.building import build
from harness.config.compose import conf_dir
from harness.config.parallel import Parallel
from harness.config.rollout import VLLM, rollout_problems
from harness.config.theirs import plugin_problems
from harness.config.train import Train, fill_from_preset, train_problems, with_lengths
from harness.evaluators.base import Eval
from harness.models import Model
from harness.models.adapters import Adapter
from harness.models.precision import precision_problems
from harness.rewards.base import Reward
from harness.tasks.base import Task
from harness.tasks.preamble import Prompt

GROUPS: dict[str, type] = {
    "algo": Algorithm,
    "adapter": Adapter,
    "model": Model,
    "task": Task,
    "prompt": Prompt,
    "reward": Reward,
    "train": Train,
    "eval": Eval,
}
SWEEP_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")
LENGTHS = ("max_length", "max_completion_length")
"""Of evaluation and reward: those of training, where they are null."""


@dataclass(frozen=True)
class Setup:
    """The components of one trial, built and checked.

    Attributes:
        prompt: what stands before every prompt of the policy.
        reward: bound to the task; None where the algorithm takes none.
        unused: knobs that this trial ignores, such as ``rank`` under full fine-tuning.
        plain: the composed configuration it came from, for the worker to build again.
        parallel: the processes that train it.
    """

    algo: Algorithm
    adapter: Adapter
    model: Model
    task: Task
    prompt: Prompt
    reward: Reward | None
    train: Train
    eval: Eval
    seed: int
    sweep: str
    unused: tuple[str, ...]
    plain: Mapping[str, Any]
    parallel: Parallel = Parallel()

    @property
    def rank(self) -> int | None:
        """The adapter's rank, where it has one."""
        return self.adapter.rank if self.algo.trains else None

    @property
    def beta(self) -> float | None:
        """The algorithm's beta, where it has one."""
        return self.algo.beta


def assemble(plain: Mapping[str, Any]) -> Setup:
    """Build all components of a composed configuration; raises ``UserErrors`` with everything wrong."""
    plain = renamed.configuration(plain)
    nodes = {name: dict(plain[name]) if plain.get(name) else None for name in GROUPS}
    errors: list[UserError] = []
    unused: list[str] = []
    plugins = tuple(plain.get("plugins") or ())
    errors += plugin_problems(plugins)
    if nodes["task"] is not None:
        nodes["task"], wrong = rules.named(nodes["task"], conf_dir())
        errors += wrong
    for group, knob in (("algo", "beta"), ("adapter", "rank")):
        default = _class_default(nodes[group], knob, plugins)
        _inject(nodes[group], knob, plain.get(knob), group, errors, unused, default)

    parallel = _parallel(plain.get("parallel"), errors)
    built: dict[str, Any] = {}
    train_node = nodes["train"] or {}
    for name in ("model", "algo", "adapter", "task", "prompt", "reward", "eval"):
        if name in ("reward", "eval") and (node := nodes[name]) is not None:
            nodes[name] = _with_lengths(node, train_node, below=name == "reward")
        if nodes[name] is None:
            built[name] = Prompt() if name == "prompt" else None
            if name not in ("reward", "prompt"):
                errors.append(UserError("a choice is required", key=name, value=None, fix=f"see conf/{name}/"))
            continue
        try:
            built[name] = build(nodes[name], path=name, plugins=plugins, base=GROUPS[name])
        except UserErrors as found:
            errors += found.errors
        if name == "model":
            context = built[name].context_length() if name in built else None
            if context is not None and (isinstance(context, bool) or not isinstance(context, int)):
                rule, kind = f"context_length() gives a number of tokens, or None, not {context!r}", type(built[name])
                errors.append(UserError(rule, key="model", value=kind.__name__, fix="return an int"))
                context = None
            train_node = with_lengths(train_node, context)
    algo: Any = built.get("algo")
    adapter: Any = built.get("adapter")
    if algo is not None and adapter is not None:
        split = 1 if algo.shares_micro_batch else parallel.processes
        train_node = fill_from_preset(train_node, algo.presets, adapter.preset, split)
    try:
        built["train"] = build(train_node, path="train", plugins=plugins, base=Train)
    except UserErrors as found:
        errors += found.errors
    seed = plain.get("seed", 0)
    errors += _check_top(plain)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        errors.append(
            UserError(
                "must be a whole number of at least 0", key="seed", value=seed, fix="seed=0; several: -m seed=0,1,2"
            )
        )
    if errors or algo is None or adapter is None:
        raise UserErrors(errors)

    built["train"] = _sampled_by(algo, built["train"], unused)
    if algo.trains:
        errors += train_problems(built["train"], algo.name, algo.presets, adapter.preset)
        errors += precision_problems(built["model"], adapter, built["train"])
        errors += rollout_problems(built["train"], adapter, built["model"])
        errors += _keeping_problems(built["train"], built["eval"])
        errors += parallel.problems(built["train"], joint=algo.shares_micro_batch)
        if parallel.processes > 1 and algo.alone is not None:
            words = f"{algo.name} trains in one process: {algo.alone}"
            errors.append(
                UserError(words, key="parallel.processes", value=parallel.processes, fix="parallel.processes=1")
            )
        if parallel.sharded:
            errors += _sharding_problems(algo, adapter, built["train"], built["eval"])
        adapter = _without_dropout(algo, adapter, unused)
    else:
        if built["eval"].at:
            unused.append("eval.at")
            built["eval"] = replace(built["eval"], at=())
        if parallel != Parallel():
            unused.append("parallel")
            parallel = Parallel()
    errors += _prompt_problems(built["prompt"], built["task"])
    reward = built["reward"] if algo.family == "online" else None
    if algo.family == "online":
        if reward is None:
            errors.append(UserError(f"{algo.name} needs a reward", key="reward", value=None, fix="reward=verifier"))
        else:
            errors += reward.problems(built["task"])
    elif plain.get("reward") is not None:
        unused.append("reward")
    errors += built["model"].problems()
    errors += [error for evaluator in built["eval"].active.values() for error in evaluator.problems()]
    if reward is not None and not errors:
        try:
            reward = reward.bind(built["task"], adapter, built["train"].preset)
        except UserError as error:
            errors.append(error)
    if errors:
        raise UserErrors(errors)
    return Setup(
        algo=algo,
        adapter=adapter,
        model=built["model"],
        task=built["task"],
        prompt=built["prompt"],
        reward=reward,
        train=built["train"],
        eval=built["eval"],
        seed=seed,
        sweep=str(plain["sweep"]),
        unused=tuple(unused),
        plain=plain,
        parallel=parallel,
    )


def with_baseline(setup: Setup, choice: str | None) -> Setup:
    """The trial with ``eval.baseline`` resolved to ``choice`` where it is ``auto``; None leaves it."""
    if choice is None or setup.eval.baseline != "auto":
        return setup
    plain = {**setup.plain, "eval": {**setup.plain["eval"], "baseline": choice}}
    return replace(setup, eval=replace(setup.eval, baseline=choice), plain=plain)  # type: ignore[arg-type]


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
    if algo.family != "online" or not adapter.dropout:
        return adapter
    unused.append("adapter.dropout")
    return replace(adapter, dropout=0.0)  # type: ignore[call-arg]


def _sampled_by(algo: Algorithm, train: Train, unused: list[str]) -> Train:
    """Knobs of training, of which those of rollouts say nothing where there are none."""
    if algo.family == "online" or train.rollout == "hf":
        return train
    unused.append("train.rollout")
    return replace(train, rollout="hf", vllm=VLLM())


def _parallel(node: Mapping[str, Any] | None, errors: list[UserError]) -> Parallel:
    """The trial's processes; one where what is asked for is wrong."""
    target = f"{Parallel.__module__}.{Parallel.__name__}"
    try:
        return build({"_target_": target, **(node or {})}, path="parallel", base=Parallel)
    except UserErrors as found:
        errors += found.errors
        return Parallel()


def _sharding_problems(algo: Algorithm, adapter: Adapter, train: Train, settings: Eval) -> list[UserError]:
    """What needs the whole policy in one process while it trains."""
    found = []
    if algo.family != "offline":
        words, fix = f"{algo.name} samples from the policy, which is in pieces", "parallel.strategy=ddp"
        found.append(UserError(words, key="parallel.strategy", value="fsdp2", fix=fix))
    if settings.at:
        words = "points on the way are judged by one process, and none has the whole policy (parallel.strategy=fsdp2)"
        found.append(
            UserError(words, key="eval.at", value=list(settings.at), fix="eval.at=[], or parallel.strategy=ddp")
        )
    if not adapter.off_is_base and adapter.peft_config() is not None:
        words = "changes the base that it starts from, of which no process has all (parallel.strategy=fsdp2)"
        found.append(UserError(words, key="adapter", value=adapter.name, fix="adapter=lora, or parallel.strategy=ddp"))
    if adapter.quantized and adapter.bits != 4:
        words = "cannot be taken apart (parallel.strategy=fsdp2)"
        found.append(UserError(words, key="adapter.bits", value=adapter.bits, fix="adapter.bits=4"))
    if "8bit" in train.optimizer or "paged" in train.optimizer:
        words = "keeps its state in tensors that cannot be taken apart (parallel.strategy=fsdp2)"
        found.append(UserError(words, key="train.optimizer", value=train.optimizer, fix="train.optimizer=auto"))
    return found


def _keeping_problems(train: Train, settings: Eval) -> list[UserError]:
    """The best point is one of a curve, and is not chosen by the rows that judge it."""
    found = []
    if train.keep == "best" and not settings.at:
        words = "keeps the policy at the best point of a curve, and no curve is asked for"
        found.append(UserError(words, key="train.keep", value="best", fix="eval.at=[0.25,0.5,0.75]"))
    if train.keep == "best" and settings.split == "validation":
        words = "train.keep=best chooses by the validation split, whose figures would flatter what was chosen by them"
        fix = "eval.split=test, or train.keep=last"
        found.append(UserError(words, key="eval.split", value="validation", fix=fix))
    return found


def _prompt_problems(prompt: Prompt, task: Task) -> list[UserError]:
    """One system message, from one place."""
    if prompt.system is None or getattr(task, "system_prompt", None) is None:
        return []
    words = "prompt.system and task.system_prompt are both set"
    return [UserError(words, key="prompt.system", value=prompt.system, fix="task.system_prompt=null")]


def _class_default(node: dict[str, Any] | None, field: str, plugins: tuple[str, ...]) -> Any:
    """Default of a field of the class that a node names; None where it has none or may not be imported."""
    from harness.config.building import import_component

    try:
        target = import_component((node or {}).get("_target_", ""), key="", plugins=plugins)
    except UserError:
        return None
    for item in fields(target) if is_dataclass(target) else ():
        if item.name == field:
            return item.default
    return None


def _with_lengths(node: Mapping[str, Any], train: Mapping[str, Any], *, below: bool) -> dict[str, Any]:
    """Lengths that are null are training's; with ``below`` in the parts of a reward of rewards too."""
    filled = {key: train.get(key) if value is None and key in LENGTHS else value for key, value in node.items()}
    if not below:
        return filled
    return {k: _with_lengths(v, train, below=True) if isinstance(v, Mapping) else v for k, v in filled.items()}


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
