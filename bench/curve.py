"""What points on the way cost of the training time, and that they change nothing: trials with and without, in turn."""

import json
import os
import statistics
from pathlib import Path

from common import harness, workdir

ALGORITHMS = ("dpo", "kto", "grpo", "ppo")
AT, LIMIT, PAIRS = "eval.at=[0.1,0.25,0.5,0.75]", 0.10, 3


def trial(name: str, overrides: list[str], cwd: Path, cache: Path) -> dict[str, float]:
    """The metrics of one trial."""
    harness([*overrides, f"sweep={name}", "eval.evaluators.lm_eval=null", "runner.predict=false"], cwd, cache)
    return json.loads(next((cwd / "outputs" / name).glob("*/result.json")).read_text())["metrics"]


def judged(metrics: dict[str, float]) -> dict[str, float]:
    """What does not depend on the clock, and is in a trial without a curve too."""
    return {k: v for k, v in metrics.items() if k.startswith("eval/") and not k.endswith("_per_s")}


def main() -> None:
    cwd = workdir()
    cache = Path(os.environ.get("HARNESS_CACHE", cwd / "cache"))
    for algo in ALGORITHMS:
        shares = []
        for i in range(PAIRS):
            found = {}
            for side in ("with", "without")[:: -1 if i % 2 else 1]:
                overrides = [f"algo={algo}", *([AT] if side == "with" else [])]
                found[side] = trial(f"{algo}-{side}-{i}", overrides, cwd, cache)
            assert judged(found["with"]) == judged(found["without"]), "the curve changed what a trial is worth"
            spent = found["with"]["time/evaluate_s"] - found["without"]["time/evaluate_s"]
            shares.append(spent / found["without"]["time/train_s"])
        share = statistics.median(shares)
        told = "ok" if share <= LIMIT else "MISSED"
        print(f"curve, {algo}: {share:.1%} of training (limit {LIMIT:.0%}) {told}  [{PAIRS} pairs]", flush=True)


if __name__ == "__main__":
    main()
