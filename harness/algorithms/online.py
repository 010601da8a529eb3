"""What online algorithms share: a trainer that clocks its rollouts and tells what happened in them."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trl import GRPOConfig
from trl.models.utils import disable_gradient_checkpointing

from harness.algorithms import vllm_rollouts
from harness.algorithms.arguments import common_arguments, to_dataset
from harness.algorithms.base import Reference, Training, TrainJob
from harness.algorithms.ppo import mathematics as math
from harness.algorithms.trl_seam import RolloutTrainer
from harness.models import prefixes
from harness.models.added import added
from harness.models.draws import drawing, uniforms
from harness.models.generation import own_distribution, rows_within_cache, sampling_config, stop_ids, text_of
from harness.rewards.base import Desk
from harness.rewards.scoring import Scorer
from harness.tasks.conversation import prompt_ids

DRAWN = "drawn.json"
RENAMED = {"completions/mean_length": "response_tokens", "clip_ratio/region_mean": "clip_fraction"}
"""TRL's series -> ours: online algorithms share their names (docs/metrics.md)."""
DROPPED = ("completions/", "clip_ratio/", "rewards/", "sampling/", "frac_reward_zero_std", "step_time")
"""Series of TRL's that repeat another one, or mean something else in another algorithm."""


def online_config(
    job: TrainJob, *, num_generations: int, num_iterations: int, rollout_batches: int, **options: Any
) -> GRPOConfig:
    """TRL's configuration; beta stays 0 here, since ``OnlineTrainer`` hands the reference over."""
    assert job.train.batch_size
    config = GRPOConfig(
        **(common := common_arguments(job)),
        beta=0.0,
        disable_dropout=True,  # the ratio of a policy to itself must be 1
        # TRL refuses groups of one, which its own advantages could not use; PPO's can.
        num_generations=num_generations if num_generations > 1 else job.train.batch_size * rollout_batches,
        num_iterations=num_iterations,
        steps_per_generation=common["gradient_accumulation_steps"] * rollout_batches,
        max_completion_length=job.train.max_completion_length,
        **vllm_rollouts.options(job, stop_ids(job.tokenizer, job.model)),
        **options,
    )
    config.num_generations = num_generations
    return config


def online_options(job: TrainJob) -> dict[str, Any]:
    """What every online trainer is made from, beside its configuration."""
    assert job.reward is not None
    prompts = [{"prompt": r["prompt"], "row": i} for i, r in enumerate(job.rows(job.data.train_prompts))]
    return {
        "clock": job.clock,
        "reference": job.reference,
        "rollout_batch": job.train.rollout_batch,
        "most_weight": job.train.vllm.most_weight,
        "scorer": Scorer(job.reward, job.task, job.data.train_prompts),
        "make_desk": partial(
            Desk,
            tokenizer=job.tokenizer,
            rows=job.bare or job.rows,
            folders=job.folders,
            device=job.device,
            dtype=job.frozen,
            precision=job.precision,
            data=job.data,
            cache=job.cache,
            longest=job.train.max_completion_length,
        ),
        "model": job.model,
        "train_dataset": to_dataset(prompts, ("prompt", "row")),
        "processing_class": job.tokenizer,
        "peft_config": job.adapter.peft_config(),
        "callbacks": job.callbacks,
    }


class Sampling:
    """How a trainer samples (``base.Sampler``), and how much it has."""

    def __init__(self, trainer: OnlineTrainer):
        """Sample as ``trainer`` does by itself."""
        self._trainer = trainer
        self.prompts, self.complete = trainer.tokenized, trainer.completed
        self.tokens = 0

    @property
    def generation_config(self) -> Any:
        """Length, temperature and stop tokens."""
        return self._trainer.generation_config

    @property
    def sampled_prompts(self) -> int | None:
        """As the trainer counts them."""
        return self._trainer.sampled_prompts


class OnlineTrainer(RolloutTrainer):
    """TRL's GRPO trainer; rollouts are a phase of the clock, the reference is given, the series are ours.

    Completions are sampled from the policy's own distribution and end as those of the evaluators do (``generation``).

    TRL would load the reference for full fine-tuning from the policy's path once more; a model with random
    weights has no path, and a copy in memory is the same weights to the bit.

    Args:
        clock: times the phases.
        reference: a frozen copy of the base; None where an adapter is switched off instead, or beta is 0.
        beta: above 0, log-probabilities of the reference are computed in every rollout.
        scorer: the reward.
        make_desk: gives the reward what it works with, once the policy is known.
        rollout_batch: completions to sample at once; None: as many as a cache may hold.
        most_weight: where vLLM samples, the largest weight of a token (``VLLM``).
        options: TRL's.
    """

    def __init__(
        self,
        *,
        clock: Any,
        reference: Any,
        beta: float,
        scorer: Scorer,
        make_desk: Callable[..., Desk],
        rollout_batch: int | None = None,
        most_weight: float = 0.0,
        **options: Any,
    ):
        """Construct with beta 0 (no reference is loaded), then set both and open the reward."""
        score: Any = self._score
        for model in (options["model"], reference):
            number_positions(model)
        with vllm_rollouts.made_here():
            super().__init__(reward_funcs=score, **options)
        self.apart = vllm_rollouts.Apart(most_weight, self.note)
        self._clock, self.scorer, self._rollout_batch = clock, scorer, rollout_batch
        self.desk = make_desk(policy=self.model)
        scorer.use(scorer.reward.open(self.desk))
        self.beta = beta
        settings: Any = self.args  # TRL's; transformers' own declaration knows less
        self.eos_token_ids = stop_ids(self.processing_class, self.model)
        self.generation_config = sampling_config(
            self.processing_class,
            self.model,
            max_new_tokens=settings.max_completion_length,
            temperature=self.temperature,
            cache_implementation=settings.cache_implementation,
        )
        if reference is not None and beta:
            from trl.trainer.utils import add_fused_lm_head

            add_fused_lm_head(reference, temperature=self.temperature)
            self.ref_model = self.accelerator.prepare_model(reference, evaluation_mode=True)
        self.sampling = Sampling(self)
        self.layers: int | None = None  # of the whole model, where a part of it is rehearsed
        self.drawn = 0  # samples of all processes so far
        self._noted: set[str] = set()
        self._times = {"rollout": 0.0, "update": 0.0}

    def training(self, reference: Reference) -> Training:
        """What the algorithm gives."""
        return Training(self, reference, self.roles, self.sampling, paid=self.scorer.paid)

    def roles(self) -> dict[str, Any]:
        """Weights by role, those of policy and reference apart."""
        return dict(self.desk.roles)

    @property
    def sampled_prompts(self) -> int | None:
        """Prompts sampled for so far; None where the number of steps tells."""
        return None

    def finish_rollout(self, batch: dict[str, Any], scores: Tensor, ended: Tensor) -> dict[str, Any]:
        """A chance to add to a rollout.

        Args:
            batch: TRL's; of its (B, T) tensors each step of the update gets its rows.
            scores: the reward of each completion, (B,).
            ended: whether it ended by itself, (B,).
        """
        return batch

    def sampled_log_probs(self, batch: dict[str, Any]) -> Tensor:
        """Log-probabilities under the policy of a rollout that has just been sampled, (B, T)."""
        if (known := batch.get("old_per_token_logps")) is not None:
            return known
        policy: Any = self.model
        ids, attention, mask = sequences(batch)
        rows = self.args.per_device_train_batch_size
        with torch.no_grad(), disable_gradient_checkpointing(policy, self.args.gradient_checkpointing_kwargs):
            return self.log_probs(policy, ids, attention, mask.shape[1], batch_size=rows)[0]

    def note(self, **values: float | Tensor) -> None:
        """Points of series; each is averaged until the next log."""
        self._noted |= values.keys()
        for name, value in values.items():
            self.series[name].append(float(value))

    def tokenized(self, rows: list[Any]) -> list[list[int]]:
        """Token ids of prompts, by the one rendering of all."""
        return prompt_ids(self.processing_class, rows)

    def completed(self, prompts: list[list[int]], *arguments: Any, **options: Any) -> Any:
        """Completions from the policy's own distribution, by draws that belong to each of them (``models.draws``).

        Where vLLM samples the draws are its own.
        """
        if self.use_vllm:
            return super().sampled(prompts, *arguments, **options)
        ranks, own = self.accelerator, len(prompts)
        first = self.drawn + ranks.process_index * own
        self.drawn += ranks.num_processes * own
        tokens = self.generation_config.max_new_tokens
        numbers = uniforms(self.args.seed, range(first, first + own), tokens)
        with (
            own_distribution(self.model, self.processing_class),
            drawing(self.model, numbers, self.temperature, self.at_once(prompts)),
            self.to_sample(),
        ):
            return super().sampled(prompts, *arguments, **options)

    @contextmanager
    def to_sample(self) -> Iterator[None]:
        """Within it the policy computes as it does where it is sampled, with what is in memory for that alone."""
        # Of an adapter's model, generate calls what autocast is not wrapped around.
        with self.accelerator.autocast(), added(self.model, layers=self.layers):
            yield

    def at_once(self, prompts: list[list[int]]) -> int | None:
        """Rows to sample at once; None where TRL's own way is taken, which samples all."""
        policy: Any = self.model
        shared = prefixes.of(policy)
        if self._rollout_batch is None and (shared is None or not shared.on):
            return None
        longest = max(map(len, prompts), default=0) + self.generation_config.max_new_tokens
        wide = self.accelerator.mixed_precision == "no"
        return self._rollout_batch or rows_within_cache(
            policy.config, longest, len(prompts), wide=wide, layers=self.layers
        )

    def saved(self, folder: Path) -> None:
        """How many samples were drawn: those of a resumed training are the next ones."""
        (folder / DRAWN).write_text(json.dumps(self.drawn))

    def restored(self, folder: Path) -> None:
        """Go on counting."""
        self.drawn = json.loads((folder / DRAWN).read_text())

    # -- steps of the trainer --------------------------------------------------------------------------

    def prompts(self, rows: list[Any]) -> list[list[int]]:
        """As the sampling has it."""
        return self.sampling.prompts(rows)

    def sampled(self, *arguments: Any, **options: Any) -> Any:
        """As the sampling has it."""
        return self.sampling.complete(*arguments, **options)

    def _score(self, completions: list[Any], completion_ids: list[list[int]], row: list[int], **_: Any) -> list[float]:
        self._ended = [bool(ids) and ids[-1] in self.eos_token_ids for ids in completion_ids]
        completions = [*map(self._without_end, completions, completion_ids, self._ended)]
        self._scores = self.scorer(completions, row, self._ended)
        return self._scores

    def _without_end(self, completion: Any, ids: list[int], ended: bool) -> Any:
        """TRL's text or message of a completion without a stop token that its tokenizer does not know for special."""
        tokenizer: Any = self.processing_class
        if not ended or ids[-1] in tokenizer.all_special_ids:
            return completion
        text = text_of(tokenizer, ids, ended=True)
        return text if isinstance(completion, str) else [{**completion[0], "content": text}, *completion[1:]]

    def rolled_out(self, inputs: Any) -> dict[str, Any]:
        """A rollout, in a phase of its own."""
        started = time.perf_counter()
        with self._clock.phase("rollout"):
            batch = self.apart.weigh(super().rolled_out(inputs))
            mask, device = batch["completion_mask"], self.accelerator.device
            scores = torch.tensor(self._scores, device=device, dtype=torch.float32)
            ended = torch.tensor(self._ended, device=device)
            batch = self.finish_rollout(batch, scores, ended)
        self.sampling.tokens += int(mask.sum())
        self.note(ended_by_eos=ended.float().mean(), **self.scorer.means())
        self._times["rollout"] += time.perf_counter() - started
        return batch

    def log_probs(self, *arguments: Any, **options: Any) -> Any:
        """TRL's; the latest are kept for the series."""
        found = super().log_probs(*arguments, **options)
        self._latest_log_probs = found[0].detach()
        return found

    def loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """TRL's, with how far the policy has moved since the rollout."""
        loss = super().loss(model, inputs)
        latest = self._latest_log_probs
        old = inputs.get("old_per_token_logps", latest)  # absent where the one step of a rollout is its own policy's
        self.note(approx_kl=math.approximate_kl(latest, old, inputs["completion_mask"]))
        return loss

    def training_step(self, *arguments: Any, **options: Any) -> Tensor:
        """One micro-batch; the time outside rollouts is the update's."""
        started, rollout = time.perf_counter(), self._times["rollout"]
        loss = super().training_step(*arguments, **options)
        self._times["update"] += time.perf_counter() - started - (self._times["rollout"] - rollout)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's series under our names, and the seconds spent since the last log."""
        own = self.series
        self._average(own)
        for theirs, ours in RENAMED.items():
            if theirs in own:
                own[ours] = own.pop(theirs)
        for name in [n for n in own if n.startswith(DROPPED)]:
            del own[name]
        for part, seconds in self._times.items():
            if seconds:
                own[f"{part}_s"] = [seconds]
        self._times = dict.fromkeys(self._times, 0.0)
        super().log(logs, start_time)

    def _average(self, own: dict[str, list[float]]) -> None:
        """Of the series that are noted here, the means over all processes; TRL gathers its own."""
        if self.accelerator.num_processes == 1:
            return
        names = sorted(name for name in self._noted if name in own)
        means = torch.tensor([sum(own[name]) / max(1, len(own[name])) for name in names])
        found: Any = self.accelerator.reduce(means.to(self.accelerator.device), "mean")
        own.update({name: [value] for name, value in zip(names, found.tolist(), strict=True)})


def number_positions(policy: Any) -> None:
    """Count positions from a row's first token, wherever padding on the left put it, as sampling does.

    A model with learned positions (GPT-2) gives other log-probabilities where they are counted from the padding. The
    transformer body counts, so that a critic that is a copy of it does as well.
    """
    body = getattr(policy, "base_model", None)
    if body is not None and "position_ids" in inspect.signature(type(body).forward).parameters:
        body.register_forward_pre_hook(_counted, with_kwargs=True)


def _counted(_: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    mask = options.get("attention_mask")
    given = options.get("position_ids") is not None or options.get("past_key_values") is not None
    if given or not isinstance(mask, Tensor) or mask.dim() != 2:
        return arguments, options
    return arguments, options | {"position_ids": (mask.long().cumsum(1) - 1).clamp(min=0)}


def sequences(batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens and attention mask of prompt and completion (B, P + T), and the completions' mask (B, T)."""
    mask = batch["completion_mask"]
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    return ids, torch.cat([batch["prompt_mask"], mask], dim=1), mask
