"""Everything of TRL's and transformers' trainers that they do not promise, under names of ours. Imports torch and trl.

Read in TRL 1.16.0 and transformers 5.24.0; ``tests/algorithms/test_trl_seam.py`` says so where a version moves one of
these names. An algorithm overrides the public methods of ``RolloutTrainer`` and ``PairTrainer``, and nothing else of
TRL's: where TRL changes, this file does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trl import DPOTrainer, GRPOTrainer, SFTTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer import dpo_trainer, kto_trainer

from harness.algorithms.losses import Said
from harness.algorithms.regrouped import groups_together
from harness.algorithms.replay import Replayed
from harness.algorithms.trl_head import only_scored
from harness.models import prefixes
from harness.models.loading import attention_of
from harness.store import checkpoints

READ_IN = {"trl": "1.16", "transformers": "5.24"}


class PairTrainer:
    """Before a TRL trainer of pairs or unpaired rows: rows come as token ids, references from a stage.

    TRL would tokenize row by row (a second for every 6,000 pairs of every trial), and keep reference log-probabilities
    by the fingerprint of the data set and a hash of all weights, an adapter's random ones included: in a sweep no
    trial would find what another one computed.

    Attributes:
        reference_scores: the trainer, a data set and a batch size -> a value for each row, by TRL's names of columns.
        replayed: rows whose likelihood is a term of the loss; None where there are none.
    """

    reference_scores: Callable[[Any, Any, int], Mapping[str, list[float]]]
    replayed: Replayed | None = None
    _taken = (-1, 0)
    """Step that goes on, and the micro-batches of it that have been taken."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's, and the share that replayed rows have in it."""
        trainer: Any = super()
        loss = trainer.compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.replayed is None or return_outputs:
            return loss
        theirs = self._replay_loss(model, self.replayed)
        return (1 - self.replayed.share) * loss + self.replayed.share * theirs

    def _replay_loss(self, model: Any, replayed: Replayed) -> Tensor:
        """Minus log-likelihood per token of the next replayed micro-batch."""
        trainer: Any = self
        step = trainer.state.global_step
        done = self._taken[1] if self._taken[0] == step else 0
        self._taken = step, done + 1
        turn = step * trainer.args.gradient_accumulation_steps + done
        ranks = trainer.accelerator
        batch = self.on_device(replayed.batch(turn * ranks.num_processes + ranks.process_index))
        found = model(**batch, use_cache=False, fused_lm_head=True).log_probs  # 0 where there is no label
        loss = -found.sum() / (batch["labels"][:, 1:] != -100).sum().clamp(min=1)
        trainer._metrics["train"]["replay_loss"].append(ranks.gather(loss.detach()).mean().item())
        return loss

    def rows(self, dataset: Any, arguments: Any) -> Any:
        """The data set to train on, of one whose rows are token ids."""
        return dataset

    def on_device(self, batch: Any) -> Any:
        """A batch of the collator's, where the model is."""
        return self._prepare_inputs(batch)  # type: ignore[attr-defined]

    def _prepare_dataset(self, dataset: Any, _: Any, args: Any, *__: Any) -> Any:
        return self.rows(dataset, args)

    def _precompute_ref_logps(self, dataset: Any, _: str, batch_size: int) -> Any:
        only_scored(self)  # TRL comes here while it makes the trainer
        for name, values in type(self).reference_scores(self, dataset, batch_size).items():
            dataset = dataset.add_column(name, values)
        return dataset


class FreePairTrainer(PairTrainer, DPOTrainer):
    """TRL's trainer of pairs with a loss that takes the policy's log-probabilities and no reference's.

    Batches, the output head that never holds all logits, and the names of series are TRL's.

    Attributes:
        scale: of the series ``rewards/``.
        by_mean: whether the loss ranks completions by log-probability per token, or by that of the whole.
    """

    scale: float
    by_mean: bool
    reference_scores = staticmethod(lambda *_: {})

    def losses(self, chosen: Said, rejected: Said) -> Tensor:
        """Of each pair, (B,)."""
        raise NotImplementedError

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False) -> Any:
        given, mask = dict(inputs), inputs["completion_mask"]
        del given["completion_mask"]
        if self.aux_loss_enabled:  # a mixture of experts
            given["output_router_logits"] = True
        labels = inputs["input_ids"].masked_fill(mask == 0, -100)
        outputs = model(**given, labels=labels, use_cache=False, fused_lm_head=True)
        mask = mask[:, 1:]
        width = mask.shape[1]  # an adapter may put virtual tokens before the real ones
        said = [Said(*part) for part in zip(outputs.log_probs[:, -width:].chunk(2), mask.chunk(2), strict=True)]
        loss = self.losses(*said).mean()
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss
        with torch.no_grad():
            self.tell(said, outputs, mask)
        return (loss, outputs) if return_outputs else loss

    def tell(self, said: Sequence[Said], outputs: Any, mask: Tensor) -> None:
        """The series that TRL's trainer of pairs has."""
        width, chosen_mask = mask.shape[1], mask.chunk(2)[0]
        chosen, rejected = (self.scale * (part.mean if self.by_mean else part.total) for part in said)
        right = outputs.is_top1[:, -width:].chunk(2)[0]
        found = {
            "entropy": (outputs.entropy[:, -width:] * mask).sum() / mask.sum().clamp(min=1),
            "mean_token_accuracy": (right & chosen_mask.bool()).sum() / chosen_mask.sum().clamp(min=1),
            "rewards/chosen": chosen.mean(),
            "rewards/rejected": rejected.mean(),
            "rewards/accuracies": (chosen > rejected).float().mean(),
            "rewards/margins": (chosen - rejected).mean(),
            "logps/chosen": said[0].total.mean(),
            "logps/rejected": said[1].total.mean(),
        }
        for name, value in found.items():
            gathered: Any = self.accelerator.gather(value.float())
            self._metrics["train"][name].append(gathered.mean().item())


class AnchoredTrainer(SFTTrainer):
    """TRL's SFT trainer with the KL to the base beside the likelihood, from the same logits.

    Attributes:
        anchor: weight of the KL.
        ref_model: a frozen copy of the base; None where an adapter is switched off instead.
    """

    anchor: float
    ref_model: Any

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Both terms are means over the trained tokens of the optimizer step."""
        given = {k: v for k, v in inputs.items() if k != "labels"} | {"use_cache": False}
        labels = inputs["labels"][:, 1:]
        trained = labels != -100
        outputs = model(**given)
        said = outputs.logits[:, :-1][trained].float().log_softmax(-1)  # (tokens, vocabulary)
        with torch.no_grad(), self._as_base(model) as base:
            before = base(**given).logits[:, :-1][trained].float().log_softmax(-1)
        tokens = trained.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        likelihood = said.gather(1, labels[trained][:, None]).sum()
        kl = (said.exp() * (said - before)).sum()
        with torch.no_grad():
            mine, count = self._metrics["train"], trained.sum()
            right, entropy = (said.argmax(-1) == labels[trained]).sum(), -(said.exp() * said).sum()
            sums: Any = self.accelerator.reduce(torch.stack([kl.detach(), entropy, right, count.float()]))
            for name, value in zip(("kl", "entropy", "mean_token_accuracy"), sums, strict=False):
                mine[name].append((value / sums[3].clamp(min=1)).item())
        loss = (self.anchor * kl - likelihood) / tokens
        if num_items_in_batch is not None:  # of all processes, over which gradients are averaged
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    @contextmanager
    def _as_base(self, model: Any) -> Iterator[Any]:
        options: Any = self.args.gradient_checkpointing_kwargs
        policy: Any = self.accelerator.unwrap_model(model)  # DDP's wrapper knows neither of the two below
        with disable_gradient_checkpointing(policy, options):
            if self.ref_model is not None:
                yield self.ref_model
                return
            with policy.disable_adapter():
                yield model


def imitation(anchor: float, reference: Any) -> type[SFTTrainer]:
    """TRL's SFT trainer, held to the base where ``anchor`` is above 0."""
    return (
        SFTTrainer if not anchor else type("Anchored", (AnchoredTrainer,), {"anchor": anchor, "ref_model": reference})
    )


def wants_one_sequence(model: Any) -> bool:
    """Whether its attention tells packed rows apart in a single sequence alone, as flash attention's kernels do."""
    return "flash" in attention_of(model.config)


def without_hashing() -> None:
    """Leave out the hash of all weights by which TRL names a cache of log-probabilities that is not used here."""
    dpo_trainer.hash_module = kto_trainer.hash_module = lambda _: "not used"  # type: ignore[assignment]


class RolloutTrainer(GRPOTrainer):
    """TRL's GRPO trainer; each step that an algorithm may want as its own has a name that stays."""

    args: Any  # TRL's GRPOConfig; transformers' own declaration knows less

    def prompts(self, rows: list[Any]) -> list[list[int]]:
        """Token ids of prompts."""
        return super()._tokenize_prompts(rows)[0]

    def sampled(self, *arguments: Any, **options: Any) -> Any:
        """Completions of prompts as token ids."""
        return super()._generate_single_turn(*arguments, **options)

    def rolled_out(self, inputs: Any) -> dict[str, Any]:
        """A batch of prompts with completions, scores and what the loss takes."""
        return super()._generate_and_score_completions(inputs)

    def log_probs(self, *arguments: Any, **options: Any) -> Any:
        """Log-probabilities of each token of completions (B, T), entropies where asked."""
        return super()._get_per_token_logps_and_entropies(*arguments, **options)

    def loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Of a micro-batch."""
        return super()._compute_loss(model, inputs)

    def batch_of(self, prompts: Any) -> Any:
        """A micro-batch of a rollout; ``prompts`` are those of the next rollout where one is due."""
        held: Any = self._buffered_inputs
        found = super()._prepare_inputs(prompts)
        shared = prefixes.of(self.model)
        # ``bnpo`` divides by the tokens of a micro-batch: another one is another loss.
        if held is self._buffered_inputs or shared is None or not shared.on or self.args.loss_type == "bnpo":
            return found
        size = self.args.gradient_accumulation_steps
        parts = range(0, len(self._buffered_inputs), size)
        self._buffered_inputs = [b for i in parts for b in groups_together(self._buffered_inputs[i : i + size])]
        return self._buffered_inputs[self.micro_step % self.args.steps_per_generation]

    def clipped(self, model: Any) -> Any:
        """The norm of the gradient, which is clipped."""
        return super()._clip_grad_norm(model)

    def saved(self, folder: Path) -> None:
        """A checkpoint was written to ``folder``: a chance to add to it."""

    def restored(self, folder: Path) -> None:
        """A checkpoint was read from ``folder``."""

    @property
    def series(self) -> dict[str, list[float]]:
        """Points since the last log, by name."""
        return self._metrics["train"]

    @property
    def micro_step(self) -> int:
        """Micro-batches taken, of which TRL counts the passes over a rollout."""
        return self._step

    @micro_step.setter
    def micro_step(self, value: int) -> None:
        self._step = value

    @property
    def rollout_is_held(self) -> bool:
        """Whether there is a rollout to take micro-batches from."""
        return self._buffered_inputs is not None

    # -- as TRL and transformers call them ---------------------------------------------------------------

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return self.prompts(prompts), None, {}

    def _generate_single_turn(self, *arguments: Any, **options: Any) -> Any:
        return self.sampled(*arguments, **options)

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        return self.rolled_out(inputs)

    def _get_per_token_logps_and_entropies(self, *arguments: Any, **options: Any) -> Any:
        return self.log_probs(*arguments, **options)

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        return self.loss(model, inputs)

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        return self.batch_of(generation_batch)

    def _clip_grad_norm(self, model: Any) -> Any:
        return self.clipped(model)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.accelerator.is_main_process:
            self.saved(checkpoints.of_step(Path(self._get_output_dir(trial=trial)), self.state.global_step))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.restored(Path(resume_from_checkpoint))


def never_idle(trainer: Any) -> None:
    """Let the only step of a training that has one be no warm-up: its learning rate would be 0.

    Transformers rounds the share of warm-up steps up, and warms up from 0.
    """
    create = trainer.create_scheduler

    def created(num_training_steps: int, optimizer: Any = None) -> Any:
        if num_training_steps == 1:
            trainer.args.warmup_steps = 0
        return create(num_training_steps, optimizer)

    trainer.create_scheduler = created


def follow(trainer: Any, scheduler: Any) -> Any:
    """Let ``trainer`` step ``scheduler`` as its own."""
    trainer.lr_scheduler, trainer._created_lr_scheduler = scheduler, True
    return scheduler


def sampling_model(trainer: Any) -> Any:
    """A context whose value is the policy as TRL samples from it."""
    from trl.models.utils import unwrap_model_for_generation

    arguments = {"gradient_checkpointing_kwargs": trainer.args.gradient_checkpointing_kwargs}
    return unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator, **arguments)


__all__ = [
    "FreePairTrainer", "PairTrainer", "RolloutTrainer", "follow", "imitation", "sampling_model", "without_hashing",
]  # fmt: skip
