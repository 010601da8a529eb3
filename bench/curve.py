"""What points on the way cost of the training time, in the trials of a sweep with `eval.at`.

    python bench/curve.py outputs/algo_matrix

A share compares two stretches of one process: points, and what is between them. That they change nothing of the result
is a test (``tests/trial/test_curve.py``).
"""

import statistics
import sys
from collections import defaultdict
from pathlib import Path

from harness.store.journal import read
from harness.store.memory_metrics import phase_rows
from harness.store.past import result_of, trial_folders

LIMIT = 0.10
TRAINING = ("train", "rollout")


def share(folder: Path) -> float | None:
    """Seconds of points on the way by seconds of training, rollouts included; None without a training."""
    rows = phase_rows(read(folder / "worker.jsonl"))
    last = max((i for i, row in enumerate(rows) if row["phase"] in TRAINING), default=None)
    if last is None:
        return None
    spent = {
        name: sum(r["seconds"] for r in rows[: last + 1] if r["phase"] == name) for name in ("evaluate", *TRAINING)
    }
    return spent["evaluate"] / sum(spent[name] for name in TRAINING)


def main() -> None:
    shares = defaultdict(list)
    for folder in trial_folders(Path(sys.argv[1])):
        result = result_of(folder)
        if result is not None and result.outcome.succeeded and (found := share(folder)) is not None:
            shares[result.config["algo"]["name"]].append(found)
    for algo, found in shares.items():
        middle = statistics.median(found)
        told = f"(limit {LIMIT:.0%}) {'ok' if middle <= LIMIT else 'MISSED'}"
        print(f"{algo}: {middle:.1%} of training, at most {max(found):.1%} {told}  [{len(found)} trials]")


if __name__ == "__main__":
    main()
