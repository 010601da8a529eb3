"""From a loaded base to a trainer that is ready to train. Imports torch."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from harness.algorithms.base import Algorithm, Training, TrainJob
from harness.algorithms.starting_point import Probe, checked
from harness.algorithms.trl_head import narrow_tiles, only_scored
from harness.base.errors import UserError
from harness.models import prefixes
from harness.models.plain_lora import matrices
from harness.models.precision import without_autocast

POLICY = "default"
"""Of the policy's adapter."""


def ready_trainer(algo: Algorithm, job: TrainJob) -> Training:
    """The algorithm's trainer, with a frozen copy of the model as its reference where that is what holds it."""
    job = replace(job, holds=algo.reference_of(job.adapter, job.train, job.data))
    if not algo.keeps_dropout or algo.uses_reference:
        without_dropout(job.model)
    if job.probes:
        longest, asked = job.train.max_length, job.train.share_prefix
        shared = prefixes.ready(job.model, asked, longest=longest, device=job.device, precision=job.precision)
    else:
        shared = prefixes.of(job.model) or prefixes.share(job.model, job.train.share_prefix)
    adapter = job.adapter.peft_config()
    if shared is not None:
        if adapter is not None and not shared.why and prefixes.by_place({POLICY: adapter}):
            shared.why = "its adapter counts tokens from the start of a row"
            shared.refuse(job.train.share_prefix)
        shared.on = not shared.why
        shared.given = shared.computed = 0
    if job.holds == "own":
        job = replace(job, reference=copy.deepcopy(job.model).requires_grad_(False).eval())
    probe = Probe(job) if job.probes and job.adapter.peft_config() is not None else None
    job.model.train()
    narrow_tiles(job.model.config.get_text_config().vocab_size, job.device)
    training: Any = algo.trainer(job)
    if not isinstance(training, Training):
        rule = f"trainer() gives a Training, not {type(training).__name__}"
        fix = "return Training(trainer=..., reference=job.holds)"
        raise UserError(rule, key="algo", value=algo.name, fix=fix)
    only_scored(training.trainer)
    if job.adapter.peft_config() is not None:
        for parameter in training.trainer.model.parameters():
            # TRL holds a QLoRA adapter in bf16, which rounds small updates away and is not what loading gives back.
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        if probe is not None:
            training = replace(training, start=probe.start(training.trainer.model))
            checked(training.start, job)
        if not job.adapter.off_is_base:
            training = replace(training, matrices=matrices(training.trainer.model))
        if algo.family == "offline":
            drop_out(training.trainer.model, job.adapter.dropout)
    return training


def without_dropout(model: Any) -> None:
    """Switch off the base's own dropout, as in the papers: a log-ratio of two noisy passes is noise.

    TRL does so for modules alone; OPT and others call the function with a rate that they keep as a number.
    """
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and ("drop" in name or (name == "p" and isinstance(module, nn.Dropout))):
                setattr(module, name, 0.0)


class PolicyDropout(nn.Dropout):
    """Dropout in passes with a gradient alone.

    KTO estimates its KL term by a pass of the policy in training mode without one, and references are scored by the
    same modules with the adapter off.
    """

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Any shape, and unchanged where no gradient is asked for."""
        return super().forward(x) if torch.is_grad_enabled() else x


def drop_out(policy: Any, share: float) -> None:
    """Give the policy's adapter the dropout that it was asked to have: TRL's trainers of pairs set it to 0."""
    layers = [m for m in policy.modules() if POLICY in getattr(m, "lora_dropout", ())]
    for layer in layers if share else ():
        layer.lora_dropout[POLICY] = PolicyDropout(share)


def released(trainer: Any, *, checkpointed: bool) -> Any:
    """The trained model, unwrapped and in eval mode; all else goes when the caller drops the trainer."""
    model = without_autocast(trainer.accelerator.unwrap_model(trainer.model))
    trainer.optimizer = trainer.lr_scheduler = None
    if checkpointed:
        model.gradient_checkpointing_disable()
    model.config.use_cache = True
    prefixes.stop(model)
    return model.eval()
