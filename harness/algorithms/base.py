"""What an algorithm is: a frozen description that makes a trainer. Import-light."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from harness.base import formatting
from harness.base.errors import UserError
from harness.base.world import World
from harness.config.train import Train, sees_half

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.models.adapters import Adapter
    from harness.rewards.base import Reward
    from harness.tasks.base import Task, TaskData
    from harness.telemetry.clock import PhaseClock


Reference = Literal["none", "base", "own", "shared"]
"""What holds the policy to where it started: nothing, the base with the adapter off, a frozen copy, or
log-probabilities that were computed before training and that trials share."""


@dataclass(frozen=True)
class TrainJob:
    """Everything an algorithm needs to make its trainer.

    Attributes:
        model: the policy's base, on its device, not yet wrapped.
        reference: a frozen copy for full fine-tuning where the algorithm uses a reference; else None.
        tokenizer: left-padding, with a pad token.
        rows: gives the task's rows in the form the model wants (conversational where it has a template).
        bare: the same without what stands before the policy's prompts (``tasks.preamble``): for a reward with a model
            of its own, and for replayed rows. None: nothing stands there.
        device: ``cpu`` or ``cuda``.
        precision: ``fp32`` or ``bf16``.
        references: where shared reference log-probabilities come from (``stages.reference``).
        holds: the kind of reference (``Algorithm.reference_of``).
        frozen: torch's dtype of the weights of models that only score.
        folders: of the stages that the reward needs, by their keys.
        replay: rows of prompt and completion that are trained on again (``train.replay``).
        probes: check with a forward pass that the adapter is where it says (``starting_point``).
        world: which of the trial's processes this is; ``train.batch_size`` is that of all of them together.
        sharded: whether each of them holds a part of the policy alone (``sharding``).
        cache: folder in which a reward keeps answers that cost something; None: nowhere.
    """

    model: PreTrainedModel
    reference: PreTrainedModel | None
    tokenizer: PreTrainedTokenizerBase
    adapter: Adapter
    task: Task
    data: TaskData
    rows: Callable[[Sequence[Mapping[str, Any]]], list[dict[str, Any]]]
    reward: Reward | None
    train: Train
    seed: int
    output_dir: Path
    device: str
    precision: str
    clock: PhaseClock
    references: Any = None
    holds: Reference = "none"
    frozen: Any = None
    folders: Mapping[str, Path] = field(default_factory=dict)
    callbacks: list[Any] = field(default_factory=list)
    replay: Sequence[Mapping[str, Any]] = ()
    bare: Callable[[Sequence[Mapping[str, Any]]], list[dict[str, Any]]] | None = None
    probes: bool = True
    world: World = World()
    sharded: bool = False
    cache: Path | None = None


class Sampler(Protocol):
    """How an online trainer samples. The harness replaces the two functions where it only rehearses.

    Attributes:
        prompts: rows of prompts -> their token ids.
        complete: token ids of prompts -> token ids of completions, and None (log-probabilities that nobody asked for).
        tokens: sampled so far.
        sampled_prompts: prompts sampled for so far; None where the number of steps tells.
    """

    prompts: Callable[[list[Any]], list[list[int]]]
    complete: Callable[..., tuple[list[list[int]], None]]
    generation_config: Any

    tokens: int

    @property
    def sampled_prompts(self) -> int | None:
        """See the class."""


@dataclass(frozen=True)
class Training:
    """What an algorithm gives: a trainer that is ready, and what the harness needs to know of it.

    Attributes:
        trainer: transformers' ``Trainer``, or what has its methods. Its ``model`` is the policy.
        reference: what holds the policy to where it started (``Algorithm.reference_of`` names it).
        roles: tensors by role that are resident beside the policy's own: ``reward``, ``critic``; of a reference that
            is a model the harness knows (``trainer.ref_model``).
        sampler: of an online algorithm.
        start: where the adapter was before the first step (``starting_point.Start``); None where nobody looked.
        matrices: of an adapter that changes its base, before the first step (``plain_lora.matrices``).
        rows: that a pass takes, where the trainer's data set holds others; None: those of the data set.
        paid: prompt rows, completions and whether each ended by itself -> what an online algorithm pays for each
            completion; None where nothing is paid.
    """

    trainer: Any
    reference: Reference = "none"
    roles: Callable[[], Mapping[str, Sequence[Tensor]]] = dict
    sampler: Sampler | None = None
    start: Any = None
    matrices: Mapping[str, Tensor] = field(default_factory=dict)
    rows: int | None = None
    paid: Callable[[Sequence[Mapping[str, Any]], Sequence[str], Sequence[bool]], Sequence[float]] | None = None

    @property
    def resident(self) -> dict[str, Sequence[Tensor]]:
        """Tensors of every role; what two roles share stands with both."""
        from harness.algorithms.roles import tensors_of

        held: dict[str, Sequence[Tensor]] = {"policy": tensors_of(self.trainer.model)}
        if self.reference in ("base", "own"):
            held["reference"] = tensors_of(self.trainer.model if self.reference == "base" else self.trainer.ref_model)
        return held | dict(self.roles())


FEW_STEPS = 10
"""Below so many a preset's learning rate moves next to nothing."""


@dataclass(frozen=True)
class Rollout:
    """One round of sampling.

    Attributes:
        steps: optimizer steps that it feeds.
        prompts: that completions are sampled for.
    """

    steps: int
    prompts: int


@dataclass(frozen=True)
class Algorithm(ABC):
    """An alignment algorithm.

    Attributes:
        beta: strength of the pull towards the reference; its meaning differs between algorithms, so compare
            them on drift and never at equal beta. None where the algorithm has no such knob.
        presets: hyper-parameters per preset and adapter: ``presets.tiny.lora.learning_rate``.
        search: what ``python -m harness tune`` may turn, by key (``sweep.search``); empty: learning rate and beta.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    name: ClassVar[str]
    family: ClassVar[Literal["offline", "online", "none"]]
    consumes: ClassVar[Literal["pairs", "unpaired", "prompts", "nothing"]]

    keeps_dropout: ClassVar[bool] = False
    """Whether the base's own dropout stays on while training; a log-ratio of two noisy passes would be noise."""

    beta: float | None = None
    presets: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    search: dict[str, Any] = field(default_factory=dict)

    @property
    def uses_reference(self) -> bool:
        """Whether training compares the policy with a frozen reference."""
        return True

    def reference_of(self, adapter: Adapter, train: Train, data: TaskData) -> Reference:
        """What will hold the policy to where it started."""
        if not self.uses_reference:
            return "none"
        if not adapter.off_is_base:
            return "own"
        if self.shares_reference(train, data):
            return "shared"
        return "own" if adapter.peft_config() is None else "base"

    def shares_reference(self, train: Train, data: TaskData) -> bool:
        """Whether its reference log-probabilities come from a stage that trials share, so that no reference is held."""
        return False

    def with_sharing(self, shared: bool) -> Algorithm:
        """The same with ``shares_reference`` decided; an algorithm that never shares stays."""
        return self

    @property
    def alone(self) -> str | None:
        """Why several processes cannot train a trial together, in words; None where they can."""
        return None

    @property
    def shares_micro_batch(self) -> bool:
        """Whether the loss looks at a micro-batch as a whole, so that several processes split it and gather."""
        return False

    @property
    def packs(self) -> bool:
        """Whether its sequences hold several rows each, and so are as long as ``train.max_length`` allows."""
        return False

    def unpacked(self) -> Algorithm:
        """The same with a row in each sequence."""
        return self

    @property
    def trains(self) -> bool:
        """False for an algorithm that only has a model evaluated."""
        return True

    def rows_in(self, data: TaskData) -> int:
        """Rows that a pass over the data takes."""
        return len(data.train_prompts if self.consumes == "prompts" else data.train_pairs)

    def problems(self, task: Task, data: TaskData, train: Train) -> list[UserError]:
        """What is impossible about this combination; empty where all is well. Torch-free."""
        found: list[UserError] = []
        if self.consumes == "pairs" and not data.train_pairs:
            found.append(
                UserError(
                    f"{self.name} learns from pairs (chosen, rejected), and this data set has none",
                    key="task",
                    value=type(task).__name__,
                    fix="use algo=kto for unpaired rows, or data with chosen and rejected",
                )
            )
        if self.consumes == "prompts" and not data.train_prompts:
            fix = "train_prompts=[{'prompt': ...}] of load(); or an offline algorithm, such as algo=dpo"
            found.append(UserError(f"{self.name} needs prompts, and this data set has none", key="task", fix=fix))
        elif self.consumes == "prompts":
            found += self._too_few_for_a_rollout(len(data.train_prompts), train)
        return found

    def _too_few_for_a_rollout(self, prompts: int, train: Train) -> list[UserError]:
        """A rollout takes whole batches of different prompts; where there are fewer, nothing would be trained."""
        if not train.batch_size or (rollout := self.rollout(train)) is None or rollout.prompts <= prompts:
            return []
        shared = math.gcd(train.batch_size, rollout.prompts)
        smaller = train.batch_size // shared * (prompts // (rollout.prompts // shared))
        return [
            UserError(
                f"a rollout of {self.name} takes {rollout.prompts:,} different prompts, and training has {prompts:,}",
                key="train.batch_size",
                value=train.batch_size,
                fix=f"train.batch_size={smaller}" if smaller else "more training prompts",
            )
        ]

    def notes(self, data: TaskData, train: Train) -> list[str]:
        """What is possible about this combination and hardly meant. Torch-free."""
        rows = self.rows_in(data)
        if self.family != "offline" or not train.batch_size or rows >= train.batch_size:
            return []
        told = f"{self.name} has {rows:,} training rows: each step takes all of them, not {train.batch_size:,}"
        if train.steps is None and train.epochs and (steps := math.ceil(train.epochs)) < FEW_STEPS:
            told += (
                f", and training is over after {formatting.count(steps, 'step')}: hardly anything is learned "
                "(fix: a smaller train.batch_size, or more train.epochs)"
            )
        return [told]

    def rollout(self, train: Train) -> Rollout | None:
        """How an online algorithm samples; None for one that learns from given rows."""
        return None

    def with_rollouts(self, factor: int) -> Algorithm:
        """The same with rollouts of ``factor`` times as many batches; an algorithm that does not sample stays."""
        return self

    def prompts_seen(self, steps: int, rows: int, train: Train) -> int:
        """Rows that ``steps`` optimizer steps take of a data set of ``rows``; the last batch of an epoch is short.

        Of an online algorithm, the prompts of the rollouts begun by then.
        """
        if (rollout := self.rollout(train)) is not None:
            return math.ceil(steps / rollout.steps) * rollout.prompts
        assert train.batch_size
        epochs, rest = divmod(steps, math.ceil(rows / train.batch_size))
        return epochs * rows + min(rest * train.batch_size, rows)

    def steps_for(self, prompts: int, rows: int, train: Train) -> int:
        """The most optimizer steps, in whole rollouts, that take no more than ``prompts`` rows; one at least."""
        if (rollout := self.rollout(train)) is not None:
            return max(1, prompts // rollout.prompts) * rollout.steps
        assert train.batch_size
        epochs, rest = divmod(prompts, rows)
        return max(1, epochs * math.ceil(rows / train.batch_size) + rest // train.batch_size)

    @abstractmethod
    def trainer(self, job: TrainJob) -> Training:
        """Make the trainer; heavy imports happen here."""


@dataclass(frozen=True)
class ReferenceFree(Algorithm):
    """Learns from pairs by a loss that knows the policy alone: no reference is held, and none reported."""

    family: ClassVar[Literal["offline", "online", "none"]] = "offline"
    consumes: ClassVar[Literal["pairs", "unpaired", "prompts", "nothing"]] = "pairs"

    @property
    def uses_reference(self) -> bool:
        """The policy is compared with itself."""
        return False

    def problems(self, task: Task, data: TaskData, train: Train) -> list[UserError]:
        """Pairs and beta > 0 are needed."""
        return [*super().problems(task, data, train), *needs_positive_beta(self)]


def needs_positive_beta(algorithm: Algorithm) -> list[UserError]:
    """Shared rule: beta must be above zero."""
    if algorithm.beta is not None and algorithm.beta > 0:
        return []
    return [
        UserError(
            f"{algorithm.name} needs beta > 0",
            key="algo.beta",
            value=algorithm.beta,
            fix="for example beta=0.1",
        )
    ]


def shares_by_rule(asked: bool | None, train: Train, rows: int) -> bool:
    """Shared rule: reference log-probabilities are shared as asked, or where training sees half of the rows."""
    return sees_half(train, rows) if asked is None else asked
