"""The evaluator contract. Import-light."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt

from harness.base.errors import UserError
from harness.base.records import unless_default
from harness.config.theirs import is_own
from harness.models.precision import computing
from harness.tasks.base import Task, TaskData, Text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.rewards.base import Reward


METRIC = re.compile(r"[\w\-. :/]+", re.ASCII)
"""Names of metrics that MLflow takes."""


@dataclass(frozen=True)
class Merging:
    """What the trained adapter can be merged into.

    Attributes:
        base: loads the base anew, not quantized, stored in the dtype that the trial computes in; in eval mode.
        reload: loads a whole model from its folder, quantized as the policy's own base was; None where that one is not.
        bits: of a weight of the base; None where it is not quantized.
        refusal: why the adapter cannot be merged; None where it can.
    """

    base: Callable[[], PreTrainedModel]
    reload: Callable[[Path], PreTrainedModel] | None = None
    refusal: str | None = None
    bits: int | None = None


class Memo:
    """What one evaluator computed of a model, for the others.

    Attributes:
        kept: of a model that other trials judge too: given the key and the way to compute it, what it is; None where
            nobody else will ask.
    """

    def __init__(self, kept: Callable[[tuple[Any, ...], Callable[[], Any]], Any] | None = None):
        """Nothing is known yet."""
        self.kept = kept
        self._known: dict[tuple[Any, ...], Any] = {}

    def once(self, key: tuple[Any, ...], compute: Callable[[], Any]) -> Any:
        """What ``compute`` returned when it was first asked for under ``key``."""
        if key not in self._known:
            self._known[key] = compute() if self.kept is None else self.kept(key, compute)
        return self._known[key]


@dataclass(frozen=True)
class EvalContext:
    """What an evaluator may look at.

    Attributes:
        model: in eval mode, adapters active.
        rows: gives rows in the form the model wants (conversational where it has a template).
        bare: the same without what stands before the policy's prompts (``tasks.preamble``): for a judge.
        split: ``test`` or ``validation``.
        beta: the algorithm's, for scaled margins; None where it has none.
        reference: log-probabilities of the held-out pairs under the model before training, as
            ``pair_log_probs`` returns them; None on the baseline.
        before_training: within it, gives this context with the model that training started from; None where there
            is no other model (on the baseline, and where nothing was trained).
        merging: what the adapter of the model can be merged into; None where no adapter was trained.
        max_length: tokens after which a sequence is truncated.
        max_completion_length: tokens sampled per completion.
        seed: of sampling; the same for baseline and trained model.
        max_leaked: share of an evaluator's documents that training may show.
        precision: in which every forward pass computes (``computing``).
        frozen: torch's dtype for the weights of a model that an evaluator brings, such as a judge.
        chat: whether texts that an evaluator brings are rendered with the chat template; None: where there is one.
        sampled_prompts: of a split at most, where sampling only describes and nothing scores; None: all.
        progress: told what is done, how much of it and of how much; None: nobody asks.
        cache: folder in which answers that cost something are kept between trials; None: nowhere.
        memo: what one evaluator computed and another may use (``scoring``); a context of another model starts afresh.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    task: Task
    data: TaskData
    rows: Callable[[Sequence[Mapping[str, Any]]], list[dict[str, Any]]]
    split: str
    batch_size: int
    max_length: int
    max_completion_length: int
    seed: int
    device: str
    beta: float | None = None
    reference: Any | None = None
    before_training: Callable[[], AbstractContextManager[EvalContext]] | None = None
    merging: Merging | None = None
    max_leaked: float = 1.0
    precision: str = "fp32"
    frozen: Any = None
    chat: bool | None = None
    sampled_prompts: int | None = None
    bare: Callable[[Sequence[Mapping[str, Any]]], list[dict[str, Any]]] | None = None
    progress: Callable[[str, int, int], None] | None = None
    cache: Path | None = None
    memo: Memo = field(init=False, repr=False, compare=False, default_factory=lambda: Memo())

    def computing(self) -> AbstractContextManager[Any]:
        """The one arithmetic of all scores; make it anew for each forward pass."""
        return computing(self.device, self.precision)

    def tell(self, what: str, done: int, total: int) -> None:
        """Progress of something that takes long."""
        if self.progress is not None:
            self.progress(what, done, total)

    @property
    def on_baseline(self) -> bool:
        """Whether the model is the base before training."""
        return self.reference is None


@dataclass(frozen=True)
class Evaluation:
    """What an evaluator found.

    Attributes:
        metrics: name without prefix -> value; ``<name>_stderr`` beside it where it is a mean, or ``<name>_low`` and
            ``<name>_high`` (95 %).
        tables: name -> rows, kept as artifacts.
        examples: unit (``pairs``, ``prompts``) -> columns, a value per example; ``example`` names it, ``cluster`` the
            prompt where several share one, the others bear the names of the metrics that are their means. Two trials
            are compared example by example.
        absent: metric -> reason why it could not be measured.
        notes: what a reader of the figures should know, a line each.
    """

    metrics: Mapping[str, float]
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    examples: Mapping[str, Mapping[str, Sequence[Any]]] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


def sound(name: str, found: Any, taken: Mapping[str, str] | None = None) -> Evaluation:
    """An evaluation that can be kept and compared.

    Args:
        name: of the evaluator, for messages.
        found: what its ``evaluate`` returned.
        taken: metrics of the evaluators before it, and whose they are.

    Raises:
        UserError: it is none, or its figures are no numbers, or another evaluator's.
    """

    def wrong(rule: str, fix: str, value: Any = "") -> UserError:
        return UserError(f"evaluate() {rule}", key=f"eval.evaluators.{name}", value=value or name, fix=fix)

    if not isinstance(found, Evaluation):
        raise wrong(f"gives an Evaluation, not a {type(found).__name__}", "return Evaluation(metrics={...})")
    if not isinstance(found.metrics, Mapping):
        raise wrong("gives its metrics by name", "Evaluation(metrics={'name': 1.0})", f"metrics: {found.metrics!r}")
    for part, kind in (("examples", Mapping), ("tables", Mapping), ("absent", Mapping)):
        if not isinstance(value := getattr(found, part), kind):
            raise wrong(f"gives {part} by name", f"Evaluation({part}={{'name': ...}})", f"{part}: {value!r}")
    for table, rows in found.tables.items():
        if not all(isinstance(row, Mapping) for row in rows):
            raise wrong(f"gives the table {table} as rows of columns", "a dictionary for each row", f"{rows!r:.80}")
    for metric, value in found.metrics.items():
        if not (isinstance(metric, str) and METRIC.fullmatch(metric)):
            fix = "letters, digits and _ - . / only"
            raise wrong("gives a metric a name that MLflow takes not", fix, f"{metric!r}")
        number = isinstance(value, int | float) or hasattr(value, "item")
        if not number or not math.isfinite(float(value)):
            fix = "leave out what could not be measured, and say why in Evaluation.absent"
            raise wrong(f"gives the metric {metric} a value that is no finite number", fix, f"{metric}: {value!r}")
        if (other := (taken or {}).get(metric)) is not None:
            raise wrong(f"gives {metric}, which is a metric of {other}", "give it another name", metric)
    for unit, columns in found.examples.items():
        if len(sizes := {column: len(values) for column, values in columns.items()}) and len(set(sizes.values())) > 1:
            raise wrong(f"gives examples ({unit}) whose columns differ in length", "a value for each example", sizes)
    return replace(found, metrics={metric: float(value) for metric, value in found.metrics.items()})


@dataclass(frozen=True)
class Evaluator(ABC):
    """Judges a model; a frozen description."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    compares: ClassVar[bool] = False
    """Whether it asks for the model before training (``EvalContext.before_training``), which full fine-tuning then
    holds beside the trained one; ``plan`` counts it."""
    merges: ClassVar[bool] = False
    """Whether it holds a merged copy of a policy with an adapter beside that policy; ``plan`` counts it likewise."""

    reads_training: ClassVar[bool] = False
    """Whether its figures depend on training rows too; of one of a user's own that is taken for granted."""

    def rows_read(self, data: TaskData) -> str:
        """Digest of the task's rows that its figures depend on."""
        return data.digest if self.reads_training or is_own(self) else data.held_out_digest

    @property
    def judge_model(self) -> Reward | None:
        """A reward that it opens beside the models, so that ``plan`` counts that too."""
        return None

    def problems(self) -> list[UserError]:
        """What is wrong with it before anything is loaded; torch-free."""
        return []

    def not_applicable(self, task: Task, data: TaskData) -> str | None:
        """Why this evaluator says nothing about the task, or None where it does."""
        return None

    def contents(self) -> Mapping[str, str]:
        """Of each field that names something on disk or on the hub, what stands for the content behind it."""
        return {}

    def asks(self) -> Sequence[str]:
        """Words of the prompts of its own file, which training must not show; none where it asks the task's."""
        return ()

    def lengths_of_own(self, tokens: Callable[[Text], int]) -> Sequence[int]:
        """Tokens of each prompt of its own file, so that ``plan`` knows the longest; ``tokens`` counts those of one."""
        return ()

    def on_fixture(self, context: EvalContext, judge: str) -> tuple[Evaluator, EvalContext]:
        """The evaluator and context whose figures are its fingerprint: without anything that must be fetched.

        Args:
            context: toy models, and the first rows of the trial's data.
            judge: folder of a toy sequence-classification model, for one that judges by a model.
        """
        return self, context

    @abstractmethod
    def evaluate(self, context: EvalContext) -> Evaluation:
        """Measure."""


Baseline = Literal["auto", "deployed", "quantized", "none"]


@dataclass(frozen=True)
class Eval:
    """The ``eval`` group: which evaluators, on what, how.

    Attributes:
        evaluators: by name; null switches an inherited one off.
        split: ``test`` for reporting, ``validation`` for tuning.
        batch_size: sequences per forward pass; fewer where a large vocabulary makes their logits too many.
        max_length: tokens after which a sequence is truncated.
        max_completion_length: tokens sampled per completion.
        seed: of sampling.
        max_leaked: share of the held-out prompts that training may show; above it the trial is refused.
        baseline: which base is judged before training: as a user would deploy it (not quantized), as the adapter trains
            on it (``quantized``), or none. ``auto`` is ``deployed``, unless that alone is predicted not to fit.
        at: shares of the training budget at which the policy is evaluated on the way, beside its start and its end;
            empty: not at all.
        curve_pairs: held-out pairs of such a point, the first of the split.
        curve_prompts: held-out prompts of such a point, each sampled once.
        best_of: samples of each of these prompts before training, of which the best paid of n stand beside the curve:
            what the reward gives without any training; 0: none.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    evaluators: dict[str, Evaluator | None] = field(default_factory=dict)
    split: Literal["test", "validation"] = "test"
    batch_size: Annotated[int, Gt(0)] = 64
    max_length: Annotated[int, Gt(1)] = 1024
    max_completion_length: Annotated[int, Gt(0)] = 256
    seed: Annotated[int, Ge(0)] = 0
    max_leaked: Annotated[float, Ge(0), Le(1)] = 0.01
    baseline: Baseline = "auto"
    at: tuple[Annotated[float, Gt(0), Lt(1)], ...] = unless_default(())
    curve_pairs: Annotated[int, Gt(0)] = unless_default(64)
    curve_prompts: Annotated[int, Gt(0)] = unless_default(64)
    best_of: Annotated[int, Ge(0)] = unless_default(0)

    @property
    def active(self) -> dict[str, Evaluator]:
        """The evaluators that are on."""
        return {name: e for name, e in self.evaluators.items() if e is not None}


def curve_split(data: TaskData, otherwise: str) -> str:
    """The split whose rows a curve shows: ``validation``, so that whoever reads it may choose by it without harm.

    Args:
        data: the task's.
        otherwise: the split of data that has no validation rows.
    """
    held = data.eval_pairs.get("validation") or data.eval_prompts.get("validation")
    return "validation" if held else otherwise
