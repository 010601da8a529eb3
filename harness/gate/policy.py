"""What may get worse, and by how much. Import-light."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Lt


@dataclass(frozen=True)
class Rule:
    """What is asked of one metric.

    Attributes:
        direction: ``up`` where higher is better.
        absolute: loss that does not matter, in the metric's own unit.
        relative: the same as a share of the baseline's mean; one of the two at most.
        same_device: look only where candidate and baseline ran on the same device and number of threads say little
            elsewhere (memory, speed); otherwise the metric is skipped, and that is said.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    direction: Literal["up", "down"]
    absolute: Annotated[float, Ge(0)] | None = None
    relative: Annotated[float, Ge(0)] | None = None
    same_device: bool = False

    def __post_init__(self) -> None:
        """One tolerance; ``ValueError`` is what ``build()`` collects."""
        if self.absolute is not None and self.relative is not None:
            raise ValueError("give absolute or relative, not both")

    def tolerance(self, mean: float) -> float:
        """In the metric's unit, for a baseline of this mean."""
        if self.relative is not None:
            return self.relative * abs(mean)
        return self.absolute or 0.0


@dataclass(frozen=True)
class Policy:
    """The metrics a gate looks at, and how sure it must be.

    Attributes:
        metrics: name of a metric -> its rule.
        false_alarms: chance that a gate fails where nothing changed, over all its metrics and recipes together.
        inconclusive: whether a metric fails for which a loss beyond the tolerance is neither shown nor ruled out.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    metrics: dict[str, Rule] = field(default_factory=dict)
    false_alarms: Annotated[float, Gt(0), Lt(1)] = 0.01
    inconclusive: Literal["pass", "fail"] = "pass"
