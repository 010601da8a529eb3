"""An eight-trial sweep against the same trials as a shell loop of bare scripts (evaluators off, all else on)."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from common import base_model, harness, ratio_line, workdir

from harness.tasks.arithmetic import Arithmetic

BETAS, RANKS, STEPS, PAIRS = (0.05, 0.1, 0.2, 0.5), (8, 16), 20, 3


def main() -> None:
    cwd = workdir()
    cache = Path(os.environ.get("HARNESS_CACHE", cwd / "cache"))
    base = base_model(cache, cwd)
    rows = cwd / "rows.jsonl"
    rows.write_text("\n".join(json.dumps(dict(r)) for r in Arithmetic().load().train_pairs))
    script = str(Path(__file__).parent / "bare_dpo.py")
    ours, theirs = [], []
    for i in range(PAIRS):
        started = time.perf_counter()
        for beta in BETAS:
            for rank in RANKS:
                subprocess.run(
                    [
                        sys.executable,
                        script,
                        str(base),
                        str(rows),
                        str(STEPS),
                        str(rank),
                        "0",
                        str(beta),
                        "2e-3",
                    ],
                    capture_output=True,
                    check=True,
                )
        theirs.append(time.perf_counter() - started)
        sweep = ["-m", "algo=dpo", f"beta={','.join(map(str, BETAS))}", f"rank={','.join(map(str, RANKS))}"]
        ours.append(harness([*sweep, f"train.steps={STEPS}", "eval=none", f"sweep=loop{i}"], cwd, cache))
    ratio_line("eight trials, DPO LoRA, 20 steps each", ours, theirs, 0.5)


main()
