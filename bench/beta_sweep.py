"""Five betas of DPO with all evaluators: what is known of the base kept and prompts read once, against neither.

The first side is a sweep as it comes. The other has a cache for each trial, in which the base alone is there, and
reads every prompt anew: what each trial would do by itself. Or it is the same sweep by an older checkout of the
harness, whose overrides must be the same.

    python bench/beta_sweep.py [--before CHECKOUT] [OVERRIDE ...]
"""

import argparse
import shutil
from pathlib import Path

from common import harness, results, workdir

BETAS = (0.05, 0.1, 0.2, 0.5, 1)
BASE = ("sft", "model")
"""Stages of the cache that make a base."""
PARTS = {
    "evaluation, baseline included": ("time/baseline_s", "time/evaluate_s"),
    "the baseline": ("time/baseline_s",),
    "evaluation of what was trained": ("time/evaluate_s",),
    "reference log-probabilities": ("time/reference_s",),
    "training": ("time/train_s",),
}
Found = list[dict[str, float]]


def sweep(name: str, common: list[str], cwd: Path, cache: Path, code: Path | None = None) -> Found:
    """The betas in one command."""
    betas = ",".join(map(str, BETAS))
    harness(["-m", *common, f"beta={betas}", f"sweep={name}"], cwd, cache, code)
    return results(cwd / "outputs" / name)


def each_alone(common: list[str], cwd: Path, cache: Path) -> Found:
    """A command for each beta, with a cache of its own."""
    found: Found = []
    for beta in BETAS:
        theirs = cwd / f"cache-{beta}"
        shutil.copytree(cache, theirs)
        harness([*common, f"beta={beta}", "train.share_prefix=false", f"sweep=alone-{beta}"], cwd, theirs)
        found += results(cwd / "outputs" / f"alone-{beta}")
    return found


def with_base_alone(common: list[str], cwd: Path, cache: Path, code: Path | None = None) -> Path:
    """A cache that holds the base and nothing that is known of it."""
    harness([*common, "train.steps=1", "eval=none", "sweep=first"], cwd, cache, code)
    for stage in cache.iterdir():
        if stage.name not in BASE:
            shutil.rmtree(stage) if stage.is_dir() else stage.unlink()
    return cache


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, help="a checkout of an older harness")
    options, own = parser.parse_known_args()
    cwd, common = workdir(), ["algo=dpo", "runner.predict=false", *own]
    cache = with_base_alone(common, cwd, cwd / "cache")
    if options.before is None:
        name, other = "each alone", each_alone(common, cwd, cache)
    else:
        name, older, code = "before", workdir(), options.before.resolve()
        other = sweep(name, common, older, with_base_alone(common, older, older / "cache", code), code)
    together = sweep("together", common, cwd, cache)
    assert len(other) == len(together) == len(BETAS)
    for what, parts in PARTS.items():
        ours, theirs = (sum(m[part] for m in side for part in parts) for side in (together, other))
        print(f"{what}: together {ours:.1f} s, {name} {theirs:.1f} s, ratio {ours / theirs:.2f}", flush=True)
    rows = [sum(m.get("budget/reference_rows", float("nan")) for m in side) for side in (together, other)]
    print(f"rows scored by the reference: together {rows[0]:,.0f}, {name} {rows[1]:,.0f}")
    for metric in ("eval/preference_accuracy", "eval/true_reward"):
        pairs = zip(together, other, strict=True)
        print(f"{metric} differs by at most {max(abs(a[metric] - b[metric]) for a, b in pairs):.4f}")


main()
