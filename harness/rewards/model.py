"""A learned reward: the reward-model stage of the trial, or any sequence-classification model."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt

from harness.base.errors import UserError
from harness.base.records import unless_default
from harness.rewards.base import Desk, ScoreFunction
from harness.rewards.learned import Held, LearnedReward, Recipe
from harness.tasks.base import Row, Task, TaskData


@dataclass(frozen=True)
class RewardModelSpec(Recipe):
    """Recipe of the reward-model stage: Bradley-Terry training on the task's pairs.

    Attributes:
        contrast: pairs added for each given one, whose loser is the chosen completion of another prompt.
        pairs: of the task's that it learns from, drawn by ``seed``; a larger number draws the same and more. None: all.
    """

    stage: ClassVar[str] = "reward_model"

    contrast: float
    pairs: int | None = None

    def drawn(self, pairs: Sequence[Row]) -> Sequence[Row]:
        """The pairs that the stage learns from."""
        if self.pairs is None:
            return pairs
        order = list(range(len(pairs)))
        random.Random(f"pairs-{self.seed}").shuffle(order)
        return [pairs[i] for i in order[: self.pairs]]


@dataclass(frozen=True)
class ModelReward(LearnedReward):
    """Scores by a reward model, shifted and scaled to mean 0 and deviation 1 over the training pairs.

    A model by ``path`` has one label. The stage learns from the task's pairs.

    Attributes:
        contrast: null takes the preset's. The number of pairs added for each given one, in which the chosen completion
            beats one that was chosen for another prompt: they teach to judge the answer to this prompt and not the
            looks of an answer (arXiv 2409.13156).
        pairs: of the task's pairs that the stage learns from, drawn by ``seed``; null: all. Nested: 200 are the 50 and
            150 more.
        normalize: shift and scale as above; a model by ``path`` is taken as it is.
    """

    contrast: Annotated[float, Ge(0)] | None = None
    pairs: Annotated[int, Gt(0)] | None = unless_default(None)
    normalize: bool = True
    spec: RewardModelSpec | None = None

    def tuned(self) -> tuple[str, ...]:
        """The pairs that are added too."""
        return (*super().tuned(), "contrast")

    def recipe(self, task: Task, **options: Any) -> RewardModelSpec:
        """With the pairs."""
        return RewardModelSpec(pairs=self.pairs, **options)

    def data_problems(self, data: TaskData) -> list[UserError]:
        """The stage learns from pairs."""
        if self.path is not None:
            return []
        if self.pairs is not None and self.pairs > len(data.train_pairs) > 0:
            words = f"the data has {len(data.train_pairs):,} training pairs"
            return [UserError(words, key="reward.pairs", value=self.pairs, fix=f"at most {len(data.train_pairs)}")]
        if data.train_pairs:
            return []
        return [
            UserError(
                "the reward-model stage learns from pairs (chosen, rejected), and this data set has none",
                key="reward",
                value="model",
                fix="name a trained one: reward.path=..., or use reward=verifier where the task has a rule",
            )
        ]

    def open(self, desk: Desk) -> ScoreFunction:
        """With the model at hand."""
        from harness.models.classifier import score_sequences, sequences_of

        held = self.held(desk)
        note = _note(desk.folders[self.spec.key]) if self.spec is not None and self.normalize else {}
        mean, deviation = note.get("mean", 0.0), note.get("deviation", 1.0)

        def score(rows: Sequence[Row], completions: Sequence[str], ended: Sequence[bool]) -> list[float]:
            whole = [{"prompt": r["prompt"], "completion": c} for r, c in zip(rows, completions, strict=True)]
            raw = score_sequences(
                held.shell,
                sequences_of(held.tokenizer, desk.rows(whole), ended=ended, longest=self.max_length),
                pad=held.tokenizer.pad_token_id,
                batch_size=self.score_batch_size,
                device=desk.device,
                precision=desk.precision,
                turn=held.turn,
            )
            return ((raw - mean) / deviation).tolist()

        return score

    def without_weights(self) -> ModelReward:
        """A reward model of the same shape."""
        same: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        return _Weightless(**{**same, "normalize": False})


class _Weightless(ModelReward):
    """Holds a model of the right shape, for tensors without data."""

    def held(self, desk: Desk) -> Held:
        """A model from a configuration alone."""
        return self.shape(desk)


def _note(folder: Path) -> Mapping[str, float]:
    import json

    from harness.store.cache import MARK

    return json.loads((folder / MARK).read_text())["note"]
