"""Train phase: the harness against a bare script with the same trainer, data and steps, in turn."""

import os
import re
from pathlib import Path

from common import RECIPE, bare, base_model, harness, metrics, ratio_line, rows_file, workdir

STEPS, PAIRS = 100, 6


def main() -> None:
    cwd = workdir()
    cache = Path(os.environ.get("HARNESS_CACHE", cwd / "cache"))
    base, rows = base_model(cache, cwd), rows_file(cwd)
    ours, theirs = [], []

    def run_ours(name: str) -> None:
        harness(["algo=dpo", *RECIPE, f"train.steps={STEPS}", "eval=none", f"sweep={name}"], cwd, cache)
        ours.append(metrics(cwd / "outputs" / name)["time/train_s"])

    def run_theirs() -> None:
        printed = bare(base, rows, STEPS, rank=16, beta=0.1)
        theirs.append(float(re.search(r"train_s=([\d.]+)", printed).group(1)))

    for i in range(PAIRS):
        if i % 2:  # each goes first in half of the pairs, so that a machine that drifts favours neither
            run_ours(f"phase{i}")
            run_theirs()
        else:
            run_theirs()
            run_ours(f"phase{i}")
        print(f"  pair {i}: harness {ours[-1]:.2f} s, bare {theirs[-1]:.2f} s", flush=True)
    ratio_line("train phase, DPO LoRA, 100 steps", ours, theirs, 1.03)


main()
