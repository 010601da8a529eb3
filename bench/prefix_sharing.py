"""Prompts read once against prompts read for every completion (as TRL does), on the same real rows, in turn.

    python bench/prefix_sharing.py pairs.jsonl problems.jsonl [--pairs 3] [--model smollm2]

``pairs.jsonl`` is what ``task=preferences`` reads, ``problems.jsonl`` what ``task=problems`` does.
"""

import argparse
import os
import statistics
from pathlib import Path

from common import harness, metrics, workdir

SIDES = {"shared": "train.share_prefix=true", "apart": "train.share_prefix=false"}
COMMON = (
    "eval=none", "adapter=lora", "train.save=none", "train.epochs=null", "train.steps=2", "train.batch_size=16",
    "train.logging_steps=1", "train.max_length=512", "runner.predict=false",
)  # fmt: skip
ONLINE = ("train.max_completion_length=64", "reward=length", "train.micro_batch_size=8")
"""Completions of 64 tokens; a base that answers nothing right learns as fast from their length."""


def recipes(pairs: Path, problems: Path) -> dict[str, tuple[str, ...]]:
    """What is timed, and how."""
    preferences = ("task=preferences", f"task.path={pairs}", "task.allow_skipped=0.2", "train.micro_batch_size=4")
    prompts = ("task=problems", f"task.path={problems}", *ONLINE)
    return {
        "dpo": ("algo=dpo", "algo.share_reference=false", *preferences),
        "kto": ("algo=kto", "algo.share_reference=false", *preferences),
        "orpo": ("algo=orpo", *preferences),
        "grpo": ("algo=grpo", "algo.num_generations=8", *prompts),
        "ppo": ("algo=ppo", *prompts),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preferences", type=Path)
    parser.add_argument("problems", type=Path)
    parser.add_argument("--pairs", type=int, default=3, help="of runs")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--algos", default="dpo,kto,orpo,grpo,ppo")
    options = parser.parse_args()
    cwd = workdir()
    cache = Path(os.environ.get("HARNESS_CACHE", cwd / "cache"))
    known = recipes(options.preferences.resolve(), options.problems.resolve())
    for name in options.algos.split(","):
        seconds: dict[str, list[float]] = {side: [] for side in SIDES}
        shares = []
        for i in range(options.pairs):
            for side in list(SIDES)[:: -1 if i % 2 else 1]:
                sweep = f"{name}-{side}-{i}"
                arguments = [*known[name], *COMMON, f"model={options.model}", SIDES[side], f"sweep={sweep}"]
                harness(arguments, cwd, cache)
                found = metrics(cwd / "outputs" / sweep)
                seconds[side].append(found["time/train_s"])
                shares += [found["throughput/computed_share"]] if "throughput/computed_share" in found else []
        ratio = statistics.median(a / b for a, b in zip(seconds["shared"], seconds["apart"], strict=True))
        shared, apart = (statistics.median(seconds[side]) for side in SIDES)
        print(
            f"{name}: shared {shared:.1f} s, apart {apart:.1f} s, ratio {ratio:.2f}; tokens read "
            f"{statistics.median(shares):.2f} of the batches [{options.pairs} pairs]",
            flush=True,
        )


main()
