"""One training step of a trial's own trainer, and the evaluation after it, with every live byte counted.

The step is the heaviest that the trial can take: the longest rows of its data in one micro-batch, the optimizer's
state already there, a gradient from the micro-batch before where there are several. Runs on fake tensors to predict,
or on real ones to see that the prediction holds. Imports torch.
"""

from __future__ import annotations

import copy
import gc
import itertools
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.cache_utils import DynamicLayer

from harness.algorithms.arguments import optimizer_name
from harness.algorithms.base import TrainJob
from harness.algorithms.roles import ORDER
from harness.conversation import prepare_rows
from harness.plan import judging, standins
from harness.plan.fakes import World, fake_world, outside
from harness.plan.timeline import Timeline
from harness.plan.tracker import Tracker, as_cuda_rounds, exact
from harness.tasks.base import TaskData, text_of
from harness.trainers import ready_trainer, released, roles_of
from harness.training import Budget, Train
from harness.trial import Setup

LOOKED_AT = 300
"""Rows, longest by characters, among which the longest by tokens are looked for."""


@dataclass(frozen=True)
class Place:
    """What is rehearsed for.

    Attributes:
        cuda: whether the trial would run on a GPU.
        dtype: of stored weights.
        precision: ``fp32`` or ``bf16``.
        fill: rows as long as ``train.max_length`` allows, in place of the data's longest.
    """

    cuda: bool
    dtype: torch.dtype
    precision: str
    fill: bool = False


def rehearse(
    setup: Setup, data: TaskData, config: Any, tokenizer: Any, place: Place, *, chat: bool, fake: bool = True
) -> Timeline:
    """Record one step of ``setup`` for a model of the transformers configuration ``config``.

    Args:
        setup: the trial.
        data: its rows.
        config: may have fewer layers than the trial's model.
        tokenizer: as the trial uses it.
        place: device and precision.
        chat: whether rows are rendered as messages.
        fake: False takes real tensors with random values, on this machine's CPU.
    """
    tracker = Tracker(as_cuda_rounds if place.cuda else exact, config.get_text_config().vocab_size)

    def rows(given: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return prepare_rows(given, chat=chat)

    def base(quantization: Any | None) -> Any:
        tracker.enter("load")
        if not fake:
            with tracker.creating("weights"):
                model = setup.model.load(None, dtype=place.dtype, device="cpu", quantization=quantization)
        else:
            with tracker.unseen():  # on the host
                model = made(config, setup, place, quantization)
            tracker.own([*model.parameters(), *model.buffers()], "weights")
            if quantization is not None:  # each weight is whole on the device before it is quantized
                torch.empty(standins.largest(model), dtype=place.dtype)
        _mark_layers(model, config, tracker)
        tracker.enter("load")
        return model.eval()

    judged = judging.sequences(setup, data, tokenizer, rows, fill=place.fill)
    with ExitStack() as stack:
        world = stack.enter_context(fake_world(cuda=place.cuda)) if fake else None
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(_booked(tracker))
        stack.enter_context(tracker)
        quantization = setup.adapter.quantization(place.dtype)
        if any(judged):
            model = base(None)
            tracker.enter("baseline")
            judging.judge(model, setup, tokenizer, rows, *judged, fake=fake)
            del model
            gc.collect()
        model = base(quantization)
        if any(judged):
            tracker.enter("reference")
            judging.judge(model, setup, tokenizer, rows, judged[0], [], fake=fake)
        if setup.algo.trains:
            tracker.enter("load")
            trainer = _trainer(setup, data, model, tokenizer, place, folder, tracker, rows)
            del model
            _watch_owners(setup, trainer, tracker)
            _take_worst_batches(trainer, setup.train.max_length if place.fill else None, world)
            with _sampling(trainer, setup, place.fill, world):
                trainer.train()
            model = released(trainer, checkpointed=setup.train.gradient_checkpointing)
            del trainer
            gc.collect()  # of the cycles that a trainer is made of
        if any(judged):
            tracker.enter("evaluate")
            judging.judge(model, setup, tokenizer, rows, *judged, fake=fake)
    return tracker.timeline()


def made(config: Any, setup: Setup, place: Place, quantization: Any | None) -> Any:
    """A model of this configuration without weights of value, 4-bit where ``quantization`` asks for it."""
    from transformers import AutoModelForCausalLM

    from harness.loading import attention_option

    before = torch.get_default_dtype()
    torch.set_default_dtype(place.dtype)
    try:
        model = AutoModelForCausalLM.from_config(
            copy.deepcopy(config), dtype=place.dtype, **attention_option(setup.model.attention)
        )
    finally:
        torch.set_default_dtype(before)
    return model if quantization is None else standins.quantize(model, place.dtype, quantization)


def shortened(setup: Setup) -> tuple[Any, Train]:
    """Algorithm and knobs of one optimizer step, with as few micro-batches as show accumulation, rollouts as large."""
    train = setup.train
    assert train.batch_size and train.micro_batch_size
    accumulation = train.batch_size // train.micro_batch_size
    few = next((n for n in range(2, accumulation + 1) if accumulation % n == 0), 1)
    short = replace(
        train,
        steps=1,
        epochs=None,
        budget=Budget(),
        batch_size=train.micro_batch_size * few,
        optimizer="adamw_torch_fused" if train.optimizer == "auto" else train.optimizer,
        checkpoint_steps=None,
    )
    return setup.algo.with_rollouts(accumulation // few), short


def _trainer(
    setup: Setup, data: TaskData, model: Any, tokenizer: Any, place: Place, folder: Path, tracker: Tracker, rows: Any
) -> Any:
    algo, train = shortened(setup)
    eight_bit = None
    if place.cuda:
        name = optimizer_name(setup.train, setup.adapter, "cuda")
        eight_bit = name if "8bit" in name else None
    job = TrainJob(
        model=model,
        reference=None,
        tokenizer=tokenizer,
        adapter=setup.adapter,
        task=setup.task,
        data=longest(setup, data, tokenizer, rows),
        rows=rows,
        reward=setup.reward,
        train=train,
        seed=setup.seed,
        output_dir=folder,
        device="cpu",
        precision=place.precision,
        clock=_Clock(tracker),
        dtype=place.dtype,
        callbacks=[_Steady(tracker)],
    )
    trainer = ready_trainer(algo, job)
    if eight_bit is not None:
        create = trainer.create_optimizer

        def stand_in(*_: Any) -> Any:
            made = create()
            trainer.optimizer = standins.EightBitAdamW(made.param_groups, paged="paged" in eight_bit)
            return trainer.optimizer

        trainer.create_optimizer = stand_in
    return trainer


def longest(setup: Setup, data: TaskData, tokenizer: Any, prepared: judging.Rows) -> TaskData:
    """The rows that make the longest micro-batch, twice over, so that a shuffle cannot part them."""
    from harness.conversation import encode

    count = setup.train.micro_batch_size or 1

    def tokens(row: Mapping[str, Any]) -> int:
        row = prepared([row])[0]
        sides = [row[side] for side in ("chosen", "rejected", "completion") if side in row]
        return max(sum(map(len, encode(tokenizer, row["prompt"], side))) for side in sides or [None])

    def top(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        by_characters = sorted(rows, key=lambda r: -sum(len(text_of(r[k])) for k in _TEXTS if k in r))[:LOOKED_AT]
        return sorted(by_characters, key=tokens, reverse=True)[:count] * 2

    unpaired: list[Mapping[str, Any]] = []
    for label in (True, False):
        unpaired += top([row for row in data.train_unpaired if row["label"] is label])
    prompts, rollout = top(data.train_prompts), setup.algo.rollout(setup.train)
    if rollout is not None:
        prompts *= math.ceil(rollout.prompts / len(prompts))
    return TaskData(train_pairs=top(data.train_pairs), train_unpaired=unpaired, train_prompts=prompts)


_TEXTS = ("prompt", "chosen", "rejected", "completion")


class _Clock:
    """Stands in for the worker's: phases go to the tracker."""

    def __init__(self, tracker: Tracker):
        self.tracker = tracker

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        outer = self.tracker.phase
        self.tracker.enter(name)
        try:
            yield
        finally:
            self.tracker.enter(outer)


class _Steady(TrainerCallback):
    """Before the step: the optimizer's state is made, as after a step before."""

    def __init__(self, tracker: Tracker):
        self.tracker = tracker

    def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        with self.tracker.creating("gradients"):
            for parameter in parameters:
                parameter.grad = torch.zeros_like(parameter)
        with self.tracker.creating("optimizer"):
            optimizer.step()
        for parameter in parameters:
            parameter.grad = None
        self.tracker.enter("train")


@contextmanager
def _booked(tracker: Tracker) -> Iterator[None]:
    """What a key-value cache makes is booked on it, and what TRL's output head makes on the logits."""
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    def by(owner: str, made: Any) -> Any:
        def booked(*arguments: Any, **options: Any) -> Any:
            with tracker.creating(owner):
                return made(*arguments, **options)

        return booked

    with ExitStack() as stack:
        stack.enter_context(patch.object(DynamicLayer, "update", by("kv_cache", DynamicLayer.update)))
        for part in ("forward", "backward"):
            function = staticmethod(by("logits", getattr(ChunkedLogProbFunction, part)))
            stack.enter_context(patch.object(ChunkedLogProbFunction, part, function))
        yield


def layers_of(model: nn.Module, count: int) -> list[nn.Module]:
    """The repeated layers: the first list of modules that is as long as the configuration says; else nothing."""
    found = next((m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count), None)
    return list(found) if found is not None else []


def _mark_layers(model: nn.Module, config: Any, tracker: Tracker) -> None:
    """Marks where a layer's forward pass begins and ends, and where its backward pass begins."""
    for i, layer in enumerate(layers_of(model, config.get_text_config().num_hidden_layers)):

        def before(*_: Any, i: int = i) -> None:
            tracker.mark("in", i)

        def after(_module: Any, _args: Any, out: Any, i: int = i) -> None:
            tracker.mark("out", i)
            tensor = out[0] if isinstance(out, tuple) else out
            if tensor.requires_grad:
                tensor.register_hook(lambda _: tracker.mark("back", i))

        layer.register_forward_pre_hook(before)
        layer.register_forward_hook(after)


def _watch_owners(setup: Setup, trainer: Any, tracker: Tracker) -> None:
    """Weights by role; gradients as they come."""
    roles = roles_of(setup.algo, trainer)
    for role in sorted(roles, key=ORDER.index, reverse=True):  # what is shared ends with the first in order
        tracker.own(roles[role], "weights" if role == "policy" else role)
    for group in (trainer.model.parameters(), roles.get("critic", ())):
        for parameter in group:
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda p: tracker.own([p.grad], "gradients"))


def _take_worst_batches(trainer: Any, fill: int | None, world: World | None) -> None:
    """Batches are made of real tensors, lengthened where asked, and taken into the world of fakes."""
    load = trainer.get_train_dataloader

    def batches() -> list[Any]:
        with outside():
            count = trainer.args.gradient_accumulation_steps
            real = [lengthened(batch, fill) for batch in itertools.islice(load(), count)]
        if not real:
            raise RuntimeError("the trainer drew no batch from the longest rows")
        return [world.take_in(batch) if world is not None else batch for batch in real]

    trainer.get_train_dataloader = batches


def lengthened(batch: Any, length: int | None) -> Any:
    """A batch whose (rows, tokens) tensors have ``length`` tokens, the last one repeated; rows keep unlike paddings."""
    if length is None or not isinstance(batch, Mapping):
        return batch
    wide = max((v.shape[1] for v in batch.values() if isinstance(v, Tensor) and v.ndim == 2), default=0)
    return {
        k: torch.cat([v, v[:, -1:].expand(-1, length - wide)], dim=1)
        if isinstance(v, Tensor) and v.ndim == 2 and v.shape[1] == wide
        else v
        for k, v in batch.items()
    }


@contextmanager
def _sampling(trainer: Any, setup: Setup, fill: bool, world: World | None) -> Iterator[None]:
    """Rollouts of the longest completions; on fakes their first and last tokens, without reading any."""
    if not hasattr(trainer, "_generate_single_turn"):
        yield
        return
    tokenize, room = trainer._tokenize_prompts, setup.train.max_length - setup.train.max_completion_length

    def prompts(rows: Any) -> Any:
        ids, *rest = tokenize(rows)
        return ([(list(i) * room)[:room] for i in ids] if fill else ids, *rest)

    trainer._tokenize_prompts = prompts
    if world is None:
        trainer.generation_config.min_new_tokens = setup.train.max_completion_length
        yield
        return

    def sampled(prompt_ids: list[list[int]], *_: Any, **__: Any) -> tuple[list[list[int]], None]:
        from trl.models.utils import unwrap_model_for_generation

        width = max(map(len, prompt_ids))
        ids = torch.ones((len(prompt_ids), width), dtype=torch.long)
        arguments = {"gradient_checkpointing_kwargs": trainer.args.gradient_checkpointing_kwargs}
        with (
            unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator, **arguments) as model,
            torch.no_grad(),
        ):
            base = model.get_base_model() if hasattr(model, "get_base_model") else model
            with standins.ends_of_sampling(base):
                model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=trainer.generation_config
                )
        return [[width % 7 + 3] * setup.train.max_completion_length for _ in prompt_ids], None

    trainer._generate_single_turn = sampled
    yield
