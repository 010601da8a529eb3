"""The part ``prefixes`` of ``gpu_check``: prompts read once against prompts read for each completion, on real kernels.

Pairs and groups of eight, prompts and completions of lengths that preference data and problems have. Forward and
backward pass of a policy with LoRA, both ways in turn: the ratio of times, of peaks, and whether losses agree.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from itertools import product
from typing import Any

WORKLOADS = {"pairs": (4, 2, 384, 160), "groups of 8": (1, 8, 256, 192)}
"""Prompts, completions of each, tokens of a prompt and of a completion."""
ROUNDS = 5
AGREES = 0.02
"""Nats a token, on average over completions: bf16's rounding."""


def prefixes(report: Any, shapes: list[str], *, device: str = "cuda", lengths: Mapping[str, Any] = WORKLOADS) -> None:
    """Measure each shape, and say what came of it."""
    import torch

    from harness.models.loading import FLEX

    report.say("\n## Prompts read once\n")
    report.say("| shape | rows | time, shared / apart | peak MB, shared | apart | nats a token apart |")
    report.say("| --- | --- | ---: | ---: | ---: | ---: |")
    lines = []
    # FlexAttention's kernels are compiled, for a device that has their backward pass.
    for shape, attention in product(shapes, ("sdpa", FLEX) if device == "cuda" else ("sdpa",)):
        try:
            model = policy(shape, device, attention)
        except Exception as error:  # of memory, or of a torch that has no such kernels: the next may still be had
            report.skip(f"prefixes on {shape}, {attention}", f"{type(error).__name__}: {str(error).splitlines()[0]}")
            continue
        for name, sizes in lengths.items():
            lines.append(
                compared(report, f"{shape}, {attention}", name, model, rows_of(model, *sizes, device=device), device)
            )
        del model
        if device == "cuda":
            torch.cuda.empty_cache()
    report.say()
    for words, gap in lines:
        report.check(f"{words}: losses agree", gap is not None and gap < AGREES, f"{gap} nats a token")


def policy(shape: str, device: str, attention: str) -> Any:
    """A shape with random weights in bf16, LoRA on all its layers, and the hooks that share beginnings."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from harness.config.compose import compose, hydra_config
    from harness.models import prefixes as shared
    from harness.trial.assemble import assemble

    with hydra_config():
        config = assemble(compose(["algo=dpo", f"model=shape/{shape}"])).model.configuration()
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    assert shared.share(model, True) is not None
    model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    return model.train()


def rows_of(model: Any, prompts: int, each: int, prompt: int, completion: int, *, device: str) -> Any:
    """Token ids (rows, tokens), and where completions begin."""
    import torch

    draw = torch.Generator().manual_seed(0)
    vocabulary = model.config.vocab_size
    heads = torch.randint(vocabulary, (prompts, prompt), generator=draw).repeat_interleave(each, 0)
    tails = torch.randint(vocabulary, (prompts * each, completion), generator=draw)
    return torch.cat([heads, tails], 1).to(device), prompt


def compared(report: Any, shape: str, name: str, model: Any, rows: Any, device: str) -> tuple[str, float | None]:
    """Both ways in turn; the words of a line, and how far losses are apart."""
    from harness.models import prefixes as shared

    ways = {"shared": shared.together, "apart": shared.apart}
    try:
        for way in ways.values():
            step(model, rows, way, device)  # kernels are chosen in the first one
        taken = [{side: step(model, rows, way, device) for side, way in ways.items()} for _ in range(ROUNDS)]
    except Exception as error:  # of a kernel that takes no such mask, or of memory: the next line may still be had
        report.skip(f"prefixes, {name} on {shape}", f"{type(error).__name__}: {str(error).splitlines()[0][:200]}")
        return f"{name} on {shape}", None
    ratio = statistics.median(one["shared"][0] / one["apart"][0] for one in taken)
    peaks = {side: max(one[side][1] for one in taken) for side in ways}
    gap = float((taken[0]["shared"][2] - taken[0]["apart"][2]).abs().mean())
    report.say(f"| {shape} | {name} | {ratio:.2f} | {peaks['shared']:,.0f} | {peaks['apart']:,.0f} | {gap:.2g} |")
    return f"{name} on {shape}", gap


def step(model: Any, rows: Any, way: Any, device: str) -> tuple[float, float, Any]:
    """Seconds and peak MB of a forward and a backward pass, and the completions' log-probabilities a token."""
    import torch

    ids, start = rows
    model.zero_grad(set_to_none=True)
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    reading: AbstractContextManager[None] = way(model)
    with reading:
        kept = ids.shape[1] - start + 1
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, logits_to_keep=kept).logits
        said = torch.gather(logits[:, :-1].float().log_softmax(-1), 2, ids[:, start:, None]).squeeze(2).mean(1)
        said.mean().neg().backward()
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated() / 1e6 if device == "cuda" else 0.0
    return seconds, peak, said.detach()
