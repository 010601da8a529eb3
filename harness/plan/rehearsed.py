"""From a composed configuration to a prediction: the model's shape, its few layers, the rehearsals. Imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch

from harness.models.making import source_of
from harness.models.meta_model import alike, layers_of, skeleton, with_layers
from harness.models.precision import place_on
from harness.plan.gpus import WORKSPACE_BYTES
from harness.plan.predict import FEW_LAYERS, Prediction, Target
from harness.rehearsal.step import Scene, rehearse
from harness.rehearsal.timeline import Level, Uneven, extended
from harness.trial.assemble import assemble
from harness.trial.checks import check_data
from harness.trial.data import cache_of, style_for, usable

BYTES = 4
"""Of a trained value: trained weights are kept in 32 bits."""


def prediction_of(plain: Mapping[str, Any], target: Target) -> Prediction:
    """Rehearse the trial of a composed configuration.

    Raises:
        UserError: its model cannot be built without weights.
    """
    torch.set_num_threads(1)
    setup = assemble(plain)
    data = check_data(setup)
    place = place_on(setup.model, setup.adapter, setup.train, "cpu", trains=setup.algo.trains, bf16=target.cuda)
    cache = cache_of(setup)
    source = source_of(setup.model, cache)
    config = setup.model.configuration(source)
    model: Any = skeleton(config, setup.model)
    tokenizer = setup.model.tokenizer(source)
    layers = config.get_text_config().num_hidden_layers
    style = style_for(setup, data, tokenizer)
    data, found = usable(setup, data, tokenizer, style, cache, source)
    scene = Scene(
        setup, data, tokenizer, style.rows, place, target.cuda, bool(target.fill), style.bare.rows, layers=layers
    )

    def rehearsed(count: int) -> Any:
        return rehearse(scene, with_layers(config, count))

    def peaks() -> Mapping[str, Level]:
        if layers > FEW_LAYERS + 2 and alike(layers_of(model, layers)):
            with suppress(Uneven):
                return extended(rehearsed(FEW_LAYERS), rehearsed(FEW_LAYERS + 1), FEW_LAYERS, layers)
        return rehearsed(layers).peaks()

    limit = setup.train.max_length
    longest = max((n for kind, n in found.longest.items() if kind.startswith("train")), default=0)
    if setup.algo.family == "online":
        longest += setup.train.max_completion_length
    phases = {phase: {o: v for o, v in level.owners.items() if v} for phase, level in peaks().items()}
    if setup.algo.trains and setup.parallel.processes > 1 and not setup.parallel.sharded:
        # DDP averages copies of the gradients, in buckets that stay.
        phases["train"]["gradients"] = phases["train"].get("gradients", 0) + BYTES * setup.adapter.expected_trainable(
            model
        )
    if target.cuda:
        for phase, owners in phases.items():
            differentiated = setup.algo.trains and phase in ("train", "rollout", "evaluate")
            owners["workspaces"] = (2 if differentiated else 1) * WORKSPACE_BYTES
    return Prediction(phases, limit if target.fill else min(limit, longest))
