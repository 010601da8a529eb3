"""From the decision to start a trial to its worker's first event, after the first trial of a sweep."""

import json
import os
import statistics
from pathlib import Path

from common import base_model, harness, workdir


def main() -> None:
    cwd = workdir()
    cache = Path(os.environ.get("HARNESS_CACHE", cwd / "cache"))
    base_model(cache, cwd)
    harness(["-m", "algo=dpo", "beta=0.05,0.1,0.2,0.5", "train.steps=2", "eval=none", "sweep=start"], cwd, cache)
    trials = [json.loads(p.read_text()) for p in (cwd / "outputs" / "start").glob("*/result.json")]
    starts = sorted(t["metrics"]["time/start_s"] for t in trials)
    later = starts[:-1]
    print(
        f"start of a trial: first {starts[-1]:.2f} s, then median {statistics.median(later):.3f} s, "
        f"max {max(later):.3f} s (limit 0.5) {'ok' if max(later) <= 0.5 else 'MISSED'}"
    )


main()
