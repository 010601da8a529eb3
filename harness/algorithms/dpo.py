"""DPO with its family of losses, and IPO: preference pairs against a frozen reference, by TRL's DPOTrainer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from annotated_types import Ge, Gt, Le, Lt

from harness.algorithms.base import Algorithm, Training, TrainJob, needs_positive_beta, shares_by_rule
from harness.algorithms.pairs import pair_training
from harness.base.errors import UserError
from harness.base.records import unless_default
from harness.config.train import Train

Loss = Literal[
    "sigmoid", "hinge", "robust", "sigmoid_norm", "exo_pair", "nca_pair", "bco_pair", "sppo_hard", "aot", "apo_zero",
    "apo_down", "discopop", "ipo", "sft",
]  # fmt: skip
"""TRL's names. ``sft``, the likelihood of the chosen completion, is for sums."""
Divergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]

DIVERGENT = {"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"}
"""Losses of the difference of both sides alone, in which the term that another divergence leaves over cancels."""
SMOOTHED = {"robust", "exo_pair", "aot"}
"""Losses that take label smoothing."""
PER_TOKEN = {"ipo", "sigmoid_norm"}
Kind = TypeVar("Kind", bound="Referenced")


@dataclass(frozen=True)
class Referenced(Algorithm):
    """Learns from pairs, held by a frozen reference.

    Attributes:
        share_reference: compute the reference log-probabilities of all rows once and share them over trials, so that
            no reference is held while training; null does where training sees at least half of the rows.
    """

    family: ClassVar[Literal["offline", "online", "none"]] = "offline"
    consumes: ClassVar[Literal["pairs", "unpaired", "prompts", "nothing"]] = "pairs"

    beta: float | None = 0.1
    share_reference: bool | None = None

    def problems(self, task: Any, data: Any, train: Train) -> list[UserError]:
        """Pairs and beta > 0 are needed."""
        return [*super().problems(task, data, train), *needs_positive_beta(self)]

    def shares_reference(self, train: Train, data: Any) -> bool:
        """As asked; by itself where training sees at least half of the rows."""
        return shares_by_rule(self.share_reference, train, self.rows_in(data))

    def with_sharing(self: Kind, shared: bool) -> Kind:
        """As asked from now on."""
        return replace(self, share_reference=shared)

    def options(self) -> dict[str, Any]:
        """The loss, for TRL's ``DPOConfig``."""
        raise NotImplementedError

    def trainer(self, job: TrainJob) -> Training:
        """TRL's trainer; with an adapter the reference is the base with the adapter off."""
        from trl import DPOTrainer

        from harness.algorithms.trl_seam import PairTrainer
        from harness.stages.reference import scores

        class Trainer(PairTrainer, DPOTrainer):
            """Its references come from the stage, and its token ids from the one rendering of all."""

            reference_scores = staticmethod(scores if job.references is None else job.references.columns)

        return pair_training(
            job,
            Trainer,
            beta=self.beta or 0.0,  # checked to be above zero
            precompute_ref_log_probs=job.holds == "shared",
            **self.options(),
        )


@dataclass(frozen=True)
class DPO(Referenced):
    """Direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290, eq. 7), and the losses made from it.

    ``sigmoid``: -log sigmoid(beta * h), where h = (log pi_w - log ref_w) - (log pi_l - log ref_l), the
    log-probabilities summed over tokens. docs/algorithms.md has the formula and the paper of each loss.

    Attributes:
        loss: one of TRL's losses of pairs, or several with their weights: ``{sigmoid: 1, sft: 0.5}``.
        label_smoothing: share of pairs taken to be labelled the wrong way round; of ``robust``, ``exo_pair``, ``aot``.
        divergence: what the policy is held by, in the place of the reverse KL (Wang et al. 2024, arXiv 2309.16240).
        divergence_alpha: of ``alpha_divergence``; 1 is the reverse KL.
        ld_alpha: weight of a completion's tokens beyond the shorter one's length (LD-DPO, arXiv 2409.06411); null: 1.
        discopop_tau: temperature of ``discopop``.
    """

    name: ClassVar[str] = "dpo"

    loss: Loss | dict[Loss, Annotated[float, Gt(0)]] = unless_default("sigmoid")
    label_smoothing: Annotated[float, Ge(0), Lt(0.5)] = unless_default(0.0)
    divergence: Divergence = unless_default("reverse_kl")
    divergence_alpha: Annotated[float, Gt(0)] = unless_default(0.5)
    ld_alpha: Annotated[float, Ge(0), Le(1)] | None = unless_default(None)
    discopop_tau: Annotated[float, Gt(0)] = unless_default(0.05)

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each loss."""
        return {str(k): v for k, v in self.loss.items()} if isinstance(self.loss, Mapping) else {self.loss: 1.0}

    def shares_reference(self, train: Train, data: Any) -> bool:
        """Never where tokens are weighted by the other side's length: what trials share are sums over tokens."""
        return self.ld_alpha is None and super().shares_reference(train, data)

    @property
    def alone(self) -> str | None:
        """Sorting gathers nothing from other processes."""
        return "aot sorts the pairs of a micro-batch, and each process has its own" if "aot" in self.weights else None

    def problems(self, task: Any, data: Any, train: Train) -> list[UserError]:
        """Each knob must belong to a loss that takes it."""
        return [*super().problems(task, data, train), *self._misfits(train)]

    def _misfits(self, train: Train) -> list[UserError]:
        losses, found = set(self.weights), []

        def wrong(key: str, value: Any, words: str, fix: str) -> None:
            found.append(UserError(words, key=f"algo.{key}", value=value, fix=fix))

        if losses <= {"sft"}:
            alone = sorted(losses) or "no loss"
            wrong("loss", alone, "compares nothing", "algo=sft, or a sum such as 'algo.loss={sigmoid:1,sft:0.5}'")
        if self.label_smoothing and not losses & SMOOTHED:
            takes = ", ".join(sorted(SMOOTHED))
            wrong("label_smoothing", self.label_smoothing, f"is read by {takes} alone", "algo.loss=robust, or 0")
        if "exo_pair" in losses and not self.label_smoothing:
            wrong("label_smoothing", 0.0, "must be above 0 for exo_pair, whose loss has its logarithm", "0.001")
        if self.divergence != "reverse_kl" and (misfit := losses - DIVERGENT):
            words = f"leaves a term over that does not cancel in {', '.join(sorted(misfit))}"
            wrong("divergence", self.divergence, words, f"one of {', '.join(sorted(DIVERGENT))}, or reverse_kl")
        if self.divergence_alpha != 0.5 and self.divergence != "alpha_divergence":
            words = "is read by algo.divergence=alpha_divergence alone"
            wrong("divergence_alpha", self.divergence_alpha, words, "algo.divergence=alpha_divergence")
        if self.discopop_tau != 0.05 and "discopop" not in losses:
            wrong("discopop_tau", self.discopop_tau, "is read by discopop alone", "algo.loss=discopop")
        if self.ld_alpha is not None and losses & PER_TOKEN:
            words = f"weights tokens, which {' and '.join(sorted(losses & PER_TOKEN))} divide by their number"
            wrong("ld_alpha", self.ld_alpha, words, "algo.loss=sigmoid, or algo.ld_alpha=null")
        if self.ld_alpha is not None and self.share_reference:
            words = "weights tokens by the other side's length, and what trials share are sums over tokens"
            wrong("ld_alpha", self.ld_alpha, words, "algo.share_reference=null")
        if "aot" in losses and train.micro_batch_size is not None and train.micro_batch_size < 2:
            words = "aot compares sorted pairs within a micro-batch, so it must hold at least 2"
            found.append(UserError(words, key="train.micro_batch_size", value=train.micro_batch_size, fix="2 or more"))
        return found

    def options(self) -> dict[str, Any]:
        """The loss, for TRL's ``DPOConfig``."""
        return {
            "loss_type": list(self.weights),
            "loss_weights": list(self.weights.values()),
            "label_smoothing": self.label_smoothing,
            "f_divergence_type": self.divergence,
            "f_alpha_divergence_coef": self.divergence_alpha,
            "ld_alpha": self.ld_alpha,
            "discopop_tau": self.discopop_tau,
        }


@dataclass(frozen=True)
class IPO(Referenced):
    """Identity preference optimization (Azar et al. 2023, arXiv 2310.12036, eq. 17).

    (h - 1 / (2 beta))^2 with h the difference of log-ratios. TRL averages the log-probabilities over tokens
    here, as the authors recommended to it; beta is the paper's tau.
    """

    name: ClassVar[str] = "ipo"

    def options(self) -> dict[str, Any]:
        """The loss, for TRL's ``DPOConfig``."""
        return {"loss_type": ["ipo"]}
