"""Train phase: the harness against a bare script with the same trainer, data and steps, in turn."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from common import base_model, harness, metrics, ratio_line, workdir

from harness.tasks.arithmetic import Arithmetic

STEPS, PAIRS = 100, 5


def main() -> None:
    cwd = workdir()
    cache = Path(os.environ.get("HARNESS_CACHE", cwd / "cache"))
    base = base_model(cache, cwd)
    rows = cwd / "rows.jsonl"
    rows.write_text("\n".join(json.dumps(dict(r)) for r in Arithmetic().load().train_pairs))
    ours, theirs = [], []
    for i in range(PAIRS):
        done = subprocess.run(
            [
                sys.executable,
                str(Path(__file__).parent / "bare_dpo.py"),
                str(base),
                str(rows),
                str(STEPS),
                "16",
                "0",
                "0.1",
                "2e-3",
            ],
            capture_output=True,
            text=True,
            check=True,
        )
        theirs.append(float(re.search(r"train_s=([\d.]+)", done.stdout).group(1)))
        harness(["algo=dpo", f"train.steps={STEPS}", "eval=none", f"sweep=phase{i}"], cwd, cache)
        ours.append(metrics(cwd / "outputs" / f"phase{i}")["time/train_s"])
    ratio_line("train phase, DPO LoRA, 100 steps", ours, theirs, 1.03)


main()
