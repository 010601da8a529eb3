"""What may get worse, and by how much. Import-light."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Lt

from harness.base.errors import UserError
from harness.config.building import build
from harness.config.compose import conf_dir

SEEN = 0.05
"""Five points: the loss that a gate is there to find, where its rule does not say."""


@dataclass(frozen=True)
class Rule:
    """What is asked of one metric.

    Attributes:
        direction: ``up`` where higher is better.
        absolute: loss that does not matter, in the metric's own unit.
        relative: the same as a share of the baseline's mean; one of the two at most.
        must_see: loss that the gate is there to find, in the metric's unit; None is 0.05, or five times ``absolute`` or
            twice ``relative`` where that is more.
        same_device: look only where candidate and baseline ran on the same device and number of threads say little
            elsewhere (memory, speed); otherwise the metric is skipped, and that is said.
        against: what the metric is held to: ``record``, the baseline's recipe of the same name; or ``base``, the model
            before training as each trial of the candidate has judged it, whatever the baseline holds.
        only: patterns of recipes' labels (``dpo-*``); the rule says nothing about others. None given: about all.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    direction: Literal["up", "down"]
    absolute: Annotated[float, Ge(0)] | None = None
    relative: Annotated[float, Ge(0)] | None = None
    must_see: Annotated[float, Gt(0)] | None = None
    same_device: bool = False
    against: Literal["record", "base"] = "record"
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """One tolerance; ``ValueError`` is what ``build()`` collects."""
        if self.absolute is not None and self.relative is not None:
            raise ValueError("give absolute or relative, not both")

    def concerns(self, recipe: str) -> bool:
        """Whether the rule is about a recipe of this label."""
        return not self.only or any(fnmatch.fnmatchcase(recipe, pattern) for pattern in self.only)

    def idle(self, recipes: Collection[str]) -> str | None:
        """A pattern that is for none of these recipes."""
        return next((p for p in self.only if not any(fnmatch.fnmatchcase(r, p) for r in recipes)), None)

    def tolerance(self, mean: float) -> float:
        """In the metric's unit, for a baseline of this mean."""
        if self.relative is not None:
            return self.relative * abs(mean)
        return self.absolute or 0.0

    def matters(self, mean: float) -> float:
        """The loss that the gate is there to find, for a baseline of this mean."""
        if self.must_see is not None:
            return self.must_see
        if self.relative is not None:
            return 2 * self.relative * abs(mean)
        return max(SEEN, 5 * (self.absolute or 0.0))


@dataclass(frozen=True)
class Rules:
    """The metrics a gate looks at, and how sure it must be.

    Attributes:
        metrics: name of a metric -> its rule.
        false_alarms: chance that a gate fails where nothing changed, over all its metrics and recipes together.
        inconclusive: whether a metric fails for which a loss beyond the tolerance is neither shown nor ruled out.
        fail_if_blind: whether a metric fails for which the gate could not have seen the loss that it is there to find.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    metrics: dict[str, Rule] = field(default_factory=dict)
    false_alarms: Annotated[float, Gt(0), Lt(1)] = 0.01
    inconclusive: Literal["pass", "fail"] = "pass"
    fail_if_blind: bool = False

    def __post_init__(self) -> None:
        """Only evaluators judge the base; ``ValueError`` is what ``build()`` collects."""
        if odd := [n for n, rule in self.metrics.items() if rule.against == "base" and not n.startswith("eval/")]:
            raise ValueError(f"metrics.{odd[0]}: against=base is for metrics of evaluators (eval/...)")

    @property
    def changes(self) -> list[str]:
        """The metrics that say what became of the base's figures, where a rule asks."""
        return [change_of(name) for name, rule in self.metrics.items() if rule.against == "base"]


def change_of(metric: str) -> str:
    """The metric of an evaluator less the base's."""
    return metric.replace("eval/", "delta/", 1)


def read_rules(name: str) -> Rules:
    """Rules by their name in ``conf/rules``, or by their file."""
    import yaml

    file = Path(name) if name.endswith((".yaml", ".yml")) else conf_dir() / "rules" / f"{name}.yaml"
    if not file.is_file():
        known = sorted(p.stem for p in (conf_dir() / "rules").glob("*.yaml"))
        raise UserError("no such rules", key="--rules", value=name, fix=f"known: {', '.join(known)}, or a YAML file")
    try:
        node = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"not YAML ({error})", key="--rules", value=name) from None
    rules = build(node, path="rules", base=Rules)
    if not rules.metrics:
        raise UserError("name no metric", key="--rules", value=name, fix="metrics: {eval/true_reward: {direction: up}}")
    return rules
