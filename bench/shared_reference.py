"""Five betas, full fine-tuning, reference log-probabilities shared and not: rows scored, and wall time."""

import os
import shutil
import statistics
import time
from pathlib import Path

from common import harness, results, workdir

PAIRS = 2
COMMON = (
    "-m", "algo=dpo", "adapter=full", "beta=0.05,0.1,0.2,0.5,1", "model=shape/llama-10m", "eval=none",
    "task.pairs=1200", "train.epochs=1", "train.batch_size=16", "train.micro_batch_size=16", "train.max_length=64",
    "train.save=none", "train.gradient_checkpointing=false", "runner.predict=false",
)  # fmt: skip
SIDES = {"shared": "algo.share_reference=true", "live": "algo.share_reference=false"}


def main() -> None:
    cwd = workdir()
    cache = Path(os.environ.get("HARNESS_CACHE", cwd / "cache"))
    walls: dict[str, list[float]] = {name: [] for name in SIDES}
    trained: dict[str, list[float]] = {name: [] for name in SIDES}
    for i in range(PAIRS):
        for name in list(SIDES)[:: -1 if i % 2 else 1]:
            shutil.rmtree(cache / "reference", ignore_errors=True)  # each sweep pays for its own
            sweep = f"{name}-{i}"
            walls[name].append(harness([*COMMON, SIDES[name], f"sweep={sweep}"], cwd, cache))
            found = results(cwd / "outputs" / sweep)
            rows = sum(m["budget/reference_rows"] for m in found)
            trained[name].append(sum(m["time/train_s"] + m["time/reference_s"] for m in found))
            peak = max(m["memory/peak_mb"] for m in found)
            print(
                f"{name}: {rows:.0f} rows under the reference, peak {peak:,.0f} MB, {walls[name][-1]:.1f} s", flush=True
            )
    for what, times in (("wall time of the sweep", walls), ("reference and training", trained)):
        ratio = statistics.median(a / b for a, b in zip(times["shared"], times["live"], strict=True))
        shared, live = statistics.median(times["shared"]), statistics.median(times["live"])
        print(f"{what}: shared {shared:.1f} s, live {live:.1f} s, ratio {ratio:.2f} [{PAIRS} pairs]")


if __name__ == "__main__":
    started = time.time()
    main()
    print(f"{time.time() - started:.0f} s")
