"""PPO's update against GRPO's, per trained token: same model, batch, epochs and reward, in turn."""

import os
import statistics
from pathlib import Path

from common import base_model, harness, metrics, workdir

EPOCHS, PAIRS, LIMIT = 4, 3, 2.5
COMMON = (
    "eval=none",
    "train.batch_size=64",
    "train.steps=80",
    "train.learning_rate=3e-4",
    "beta=0.04",
    "train.save=none",
)
SIDES = {"ppo": ("algo=ppo", f"algo.epochs={EPOCHS}"), "grpo": ("algo=grpo", f"algo.num_iterations={EPOCHS}")}


def main() -> None:
    cwd = workdir()
    cache = Path(os.environ.get("HARNESS_CACHE", cwd / "cache"))
    base_model(cache, cwd)
    for adapter in ("full", "lora"):
        costs: dict[str, list[float]] = {name: [] for name in SIDES}
        for i in range(PAIRS):
            for name in list(SIDES)[:: -1 if i % 2 else 1]:
                sweep = f"{name}-{adapter}-{i}"
                harness([*SIDES[name], *COMMON, f"adapter={adapter}", f"sweep={sweep}"], cwd, cache)
                found = metrics(cwd / "outputs" / sweep)
                tokens = found["throughput/rollout_tokens_per_s"] * found["time/rollout_s"] * EPOCHS
                costs[name].append(found["time/train_s"] / tokens * 1e6)
        ratio = statistics.median(a / b for a, b in zip(costs["ppo"], costs["grpo"], strict=True))
        print(
            f"update per trained token, {adapter}: ppo {statistics.median(costs['ppo']):.0f} us, "
            f"grpo {statistics.median(costs['grpo']):.0f} us, ratio {ratio:.2f} (limit {LIMIT}) "
            f"{'ok' if ratio <= LIMIT else 'MISSED'}",
            flush=True,
        )


main()
