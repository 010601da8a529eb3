"""Five betas of DPO with all evaluators: what is known of the base kept and prompts read once, against neither.

The first side is a sweep as it comes. The other has a cache for each trial, in which the base alone is there, and
reads every prompt anew: what each trial would do by itself.

    python bench/beta_sweep.py [OVERRIDE ...]
"""

import shutil
import sys

from common import harness, results, workdir

BETAS = (0.05, 0.1, 0.2, 0.5, 1)
BASE = ("sft", "model")
"""Stages of the cache that make a base."""


def main() -> None:
    cwd, own = workdir(), sys.argv[1:]
    cache = cwd / "cache"
    common = ["algo=dpo", *own]
    harness([*common, "train.steps=1", "eval=none", "sweep=first", "runner.predict=false"], cwd, cache)
    for stage in cache.iterdir():
        if stage.name not in BASE:
            shutil.rmtree(stage) if stage.is_dir() else stage.unlink()
    alone = []
    for beta in BETAS:
        theirs = cwd / f"cache-{beta}"
        shutil.copytree(cache, theirs)
        arguments = [*common, f"beta={beta}", "train.share_prefix=false", f"sweep=alone-{beta}", "runner.predict=false"]
        harness(arguments, cwd, theirs)
        alone += results(cwd / "outputs" / f"alone-{beta}")
    betas = ",".join(map(str, BETAS))
    harness(["-m", *common, f"beta={betas}", "sweep=together", "runner.predict=false"], cwd, cache)
    together = results(cwd / "outputs" / "together")
    assert len(alone) == len(together) == len(BETAS)
    for what, parts in {
        "evaluation, baseline included": ("time/baseline_s", "time/evaluate_s"),
        "the baseline": ("time/baseline_s",),
        "reference log-probabilities": ("time/reference_s",),
        "training": ("time/train_s",),
    }.items():
        ours, theirs = (sum(m[part] for m in side for part in parts) for side in (together, alone))
        print(f"{what}: together {ours:.1f} s, each alone {theirs:.1f} s, ratio {ours / theirs:.2f}", flush=True)
    rows = [sum(m["budget/reference_rows"] for m in side) for side in (together, alone)]
    print(f"rows scored by the reference: together {rows[0]:,.0f}, each alone {rows[1]:,.0f}")
    for name in ("eval/preference_accuracy", "eval/true_reward"):
        pairs = zip(together, alone, strict=True)
        print(f"{name} differs by at most {max(abs(a[name] - b[name]) for a, b in pairs):.4f}")


main()
