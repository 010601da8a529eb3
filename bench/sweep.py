"""An eight-trial sweep against the same trials as a shell loop of bare scripts (evaluators off, all else on)."""

import os
import time
from itertools import product
from pathlib import Path

from common import RECIPE, bare, base_model, harness, ratio_line, rows_file, workdir

BETAS, RANKS, STEPS, PAIRS = (0.05, 0.1, 0.2, 0.5), (8, 16), 20, 3


def main() -> None:
    cwd = workdir()
    cache = Path(os.environ.get("HARNESS_CACHE", cwd / "cache"))
    base, rows = base_model(cache, cwd), rows_file(cwd)
    ours, theirs = [], []
    for i in range(PAIRS):
        started = time.perf_counter()
        for beta, rank in product(BETAS, RANKS):
            bare(base, rows, STEPS, rank=rank, beta=beta)
        theirs.append(time.perf_counter() - started)
        sweep = ["-m", "algo=dpo", f"beta={','.join(map(str, BETAS))}", f"rank={','.join(map(str, RANKS))}"]
        ours.append(harness([*sweep, *RECIPE, f"train.steps={STEPS}", "eval=none", f"sweep=loop{i}"], cwd, cache))
        print(f"  pair {i}: harness {ours[-1]:.2f} s, bare {theirs[-1]:.2f} s", flush=True)
    ratio_line("eight trials, DPO LoRA, 20 steps each", ours, theirs, 0.5)


main()
