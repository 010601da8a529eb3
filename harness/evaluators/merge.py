"""What merging costs: people deploy the adapter merged into its base, and that is not quite the policy they trained."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Ge

from harness.evaluators.base import EvalContext, Evaluation, Evaluator, Merging
from harness.models.loading import let_go
from harness.tasks.base import Task, TaskData, digest_of, prompt_key

if TYPE_CHECKING:
    from harness.evaluators.scoring import PairLogProbs

MB = 1e6
WAYS = {
    "merged": "merged into the base",
    "merged_dequantized": "merged into the base that its quantized weights stand for",
    "merged_4bit": "merged into that base and quantized to 4 bits again",
    "merged_8bit": "merged into that base and quantized to 8 bits again",
}
"""What a policy can be deployed as, without its adapter."""


@dataclass(frozen=True)
class Merge(Evaluator):
    """The policy with its adapter against the same merged: what it says, what it prefers, its size and its speed.

    The adapter is merged into the base in the dtype that the trial computes in (bf16 on most GPUs, 32 bits on a CPU).
    One that was trained on a quantized base is also merged into the values that those weights stand for, and the sum
    quantized again. Each merged copy is held beside the policy, one after the other; the policy stays as it is.

    Attributes:
        speed_tokens: sampled for each prompt when speed is measured; 0 measures none.
    """

    merges: ClassVar[bool] = True

    speed_tokens: Annotated[int, Ge(0)] = 32

    def not_applicable(self, task: Task, data: TaskData) -> str | None:
        """Held-out rows are needed."""
        held_out = any(data.eval_pairs.values()) or any(data.eval_prompts.values())
        return None if held_out else "the data has no held-out rows"

    def on_fixture(self, context: EvalContext, judge: str) -> tuple[Merge, EvalContext]:
        """The toy with an adapter, and no speed: that is another one each time."""
        return replace(self, speed_tokens=0), _with_adapter(context)

    def evaluate(self, context: EvalContext) -> Evaluation:
        """Save the adapter, then merge it in every way that it can be, each measured and let go before the next."""
        import torch

        merging = context.merging
        refusal = "no adapter was trained, so there is nothing to merge" if merging is None else merging.refusal
        if merging is None or refusal is not None:
            return Evaluation({}, absent={"merged_kl_per_token": str(refusal)})
        found = Found()
        devices = [context.device] if context.device == "cuda" else []
        with tempfile.TemporaryDirectory() as scratch, torch.random.fork_rng(devices=devices):
            adapter = Path(scratch) / "adapter"
            context.model.save_pretrained(str(adapter))
            found.metrics["adapter_mb"] = (adapter / "adapter_model.safetensors").stat().st_size / MB
            self._time_adapters(context, adapter, found)
            for way, model in copies(context, merging, Path(scratch), found):
                self._measure(context, replace(context, model=model, merging=None), way, found)
                del model
        return found.evaluation()

    def _time_adapters(self, context: EvalContext, adapter: Path, found: Found) -> None:
        """How fast the policy samples by itself, and with two adapters that requests take in turn."""
        from harness.evaluators.merge_measures import one_for_all, tokens_per_second, two_adapters

        if not self.speed_tokens:
            return
        found.put("unmerged_tokens_per_s", tokens_per_second(context, self.speed_tokens))
        if (reason := one_for_all(context.model)) is not None:
            found.absent["multi_adapter_tokens_per_s"] = reason
            return
        with two_adapters(context.model, adapter) as names:
            found.put("multi_adapter_tokens_per_s", tokens_per_second(context, self.speed_tokens, names))

    def _measure(self, context: EvalContext, merged: EvalContext, way: str, found: Found) -> None:
        """One merged copy against the policy."""
        from harness.evaluators.merge_measures import completions, divergences, tokens_per_second
        from harness.evaluators.scoring import pair_log_probs, ratio_with_stderr
        from harness.models.merging import weight_bytes

        sequences, keys = completions(context)
        nats, tokens = divergences(merged, context, sequences)
        by_prompt: dict[str, tuple[float, float]] = {}
        for key, sum_, count in zip(keys, nats, tokens, strict=True):
            before = by_prompt.get(key, (0.0, 0.0))
            by_prompt[key] = before[0] + sum_, before[1] + count
        above, below = ([sums[i] for sums in by_prompt.values()] for i in (0, 1))
        found.metrics |= ratio_with_stderr(f"{way}_kl_per_token", above, below)
        if context.data.eval_pairs.get(context.split):
            found.compare(context, way, pair_log_probs(merged))
        else:
            found.absent[f"{way}_preference_accuracy"] = f"no held-out pairs in split {context.split}"
        found.metrics[f"{way}_mb"] = weight_bytes(merged.model) / MB
        if self.speed_tokens:
            found.put(f"{way}_tokens_per_s", tokens_per_second(merged, self.speed_tokens))


@dataclass
class Found:
    """What has been measured so far; see ``Evaluation``."""

    metrics: dict[str, float] = field(default_factory=dict)
    columns: dict[str, Sequence[Any]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def put(self, name: str, value: float | None) -> None:
        """A figure, where there is one."""
        if value is not None:
            self.metrics[name] = value

    def compare(self, context: EvalContext, way: str, merged: PairLogProbs) -> None:
        """Preferences of the merged policy, and how they differ from the policy's, pair by pair."""
        from harness.base.stats import rows_interval
        from harness.evaluators.preference import wins
        from harness.evaluators.scoring import pair_log_probs, share_with_bounds, with_stderr

        pairs = context.data.eval_pairs[context.split]
        prompts = [prompt_key(pair["prompt"]) for pair in pairs]
        start, own = start_of(context), pair_log_probs(context)

        def gains(scores: PairLogProbs) -> tuple[list[float], list[float]]:
            return (scores.chosen - start.chosen).tolist(), (scores.rejected - start.rejected).tolist()

        won, before = wins(*gains(merged)), wins(*gains(own))
        changes = [a - b for a, b in zip(won, before, strict=True)]
        margins = [chosen - rejected for chosen, rejected in zip(*gains(merged), strict=True)]
        interval = rows_interval(changes, prompts)
        name = f"{way}_preference_accuracy"
        self.metrics |= share_with_bounds(name, won, prompts)
        self.metrics |= with_stderr(f"{name}_change", changes, prompts)
        self.put(f"{name}_change_low", interval.low)
        self.put(f"{name}_change_high", interval.high)
        self.metrics |= with_stderr(f"{way}_logratio_margin", margins, prompts)
        self.columns |= {"example": [digest_of(dict(pair)) for pair in pairs], "cluster": prompts}
        self.columns |= {name: won, f"{name}_change": changes, f"{way}_logratio_margin": margins}

    def evaluation(self) -> Evaluation:
        """As evaluators give it."""
        examples = {"merge": self.columns} if self.columns else {}
        return Evaluation(self.metrics, examples=examples, absent=self.absent, notes=self.notes)


def start_of(context: EvalContext) -> PairLogProbs:
    """Log-probabilities of the held-out pairs under the model that training started from."""
    from harness.evaluators.scoring import pair_log_probs

    pairs = context.data.eval_pairs[context.split]
    if context.reference is not None and len(context.reference.chosen) == len(pairs):
        return context.reference
    assert context.before_training is not None, "an adapter was trained, so there was a model before"
    with context.before_training() as before:
        return pair_log_probs(before)


def copies(context: EvalContext, merging: Merging, scratch: Path, found: Found) -> Iterator[tuple[str, Any]]:
    """Every way with its merged model, of which one is there at a time; a way that cannot be had is noted as absent."""
    from safetensors import SafetensorError

    from harness.models.merging import CannotMerge, merged, write_out

    adapter, whole = scratch / "adapter", scratch / "whole"
    quantized = merging.reload is not None
    for way in ("merged", "merged_dequantized") if quantized else ("merged",):
        model: Any = merging.base()
        if way == "merged_dequantized":
            policy: Any = context.model
            write_out(policy.get_base_model(), model)
        try:
            model = merged(model, adapter)
        except CannotMerge as refused:
            found.absent[f"{way}_kl_per_token"] = str(refused)
            continue
        stored = str(model.dtype).removeprefix("torch.")
        found.notes.append(f"{way}: the adapter {WAYS[way]}, in {stored}")
        yield way, model
        if way == "merged_dequantized":
            with suppress(OSError, SafetensorError):
                model.save_pretrained(str(whole))
                (whole / "written").touch()
        del model
        let_go(context.device)
    if merging.reload is None or "merged_dequantized_kl_per_token" in found.absent:
        return
    again = f"merged_{merging.bits}bit"
    if not (whole / "written").is_file():
        found.absent[f"{again}_kl_per_token"] = f"the merged policy cannot be written below {scratch.parent}"
        return
    found.notes.append(f"{again}: the adapter {WAYS[again]}")
    yield again, merging.reload(whole)
    let_go(context.device)


def _with_adapter(context: EvalContext) -> EvalContext:
    """The same with an adapter of rank 2 on a copy of the model, which says something else than the model alone."""
    import copy

    import torch
    from peft import LoraConfig, get_peft_model

    whole = context.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy: Any = get_peft_model(copy.deepcopy(whole), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
        for name, parameter in policy.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(parameter, std=0.3)
    return replace(context, model=policy.eval(), merging=Merging(lambda: copy.deepcopy(whole)))


__all__ = ["Merge"]
