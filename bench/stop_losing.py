"""What ``runner.stop_losing`` saves and what it costs, replayed on the curves of a finished sweep.

    python bench/stop_losing.py outputs/algo_matrix            # or --orders 200

Needs a sweep of several seeds with ``eval.at``. Each replay draws every recipe's seeds anew from those on record
(with replacement), shuffles the trials, and runs them one after another by the rule of the harness itself: at each
point a trial that has lost against the best that finished by then ends there, and is charged that share of its time. A
recipe of which a seed was stopped is out, as in a report. Prints how often the sweep still names the recipe that the
whole grid names, at which share of the training time, and how often a stopped recipe is the one that it names.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.store.past import result_of, trial_folders
from harness.trial.curve.losing import Point, best_among, has_lost, point_of, points_on_record

FINAL, ON_THE_WAY = "eval/true_reward", "curve/true_reward"
NOT_ASKED = (0.0, 1.0)
"""Shares that every curve has and that stop nothing."""


@dataclass(frozen=True)
class Recorded:
    """A finished trial: its recipe, final score, seconds of training, and points by share of the budget."""

    recipe: str
    score: float
    seconds: float
    points: Mapping[float, Point]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="folder of the sweep, such as outputs/algo_matrix")
    parser.add_argument("--orders", type=int, default=200, help="replays (default 200)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    trials = recorded(options.sweep)
    told(trials, [replayed(trials, random.Random(f"{options.seed}-{i}")) for i in range(options.orders)])


def recorded(sweep: Path) -> list[Recorded]:
    """The finished trials of a sweep that have a curve."""
    found = []
    for folder in trial_folders(sweep):
        result = result_of(folder)
        if result is None or not result.outcome.succeeded or FINAL not in result.metrics:
            continue
        metrics = result.metrics
        points = {p["share"]: point_of(folder.name, p["values"], ON_THE_WAY) for p in points_on_record(folder)}
        asked = {share: point for share, point in points.items() if point is not None and share not in NOT_ASKED}
        recipe, _, _ = folder.name.rpartition("-s")
        if asked:
            seconds = metrics["time/train_s"] + metrics.get("time/rollout_s", 0.0)
            found.append(Recorded(recipe, metrics[FINAL], seconds, asked))
    if not found:
        raise SystemExit(f"{sweep}: no finished trial has a curve (eval.at)")
    return found


def replayed(trials: Sequence[Recorded], chance: random.Random) -> dict[str, Any]:
    """One sweep with losing trials stopped, of resampled seeds in a random order."""
    by_recipe: dict[str, list[Recorded]] = defaultdict(list)
    for trial in trials:
        by_recipe[trial.recipe].append(trial)
    drawn = [trial for seeds in by_recipe.values() for trial in chance.choices(seeds, k=len(seeds))]
    chance.shuffle(drawn)
    finished: list[Recorded] = []
    stopped: list[Recorded] = []
    spent = 0.0
    for trial in drawn:
        lost = next((share for share in sorted(trial.points) if loses(trial, share, finished)), None)
        spent += trial.seconds * (1.0 if lost is None else lost)
        (finished if lost is None else stopped).append(trial)
    out = {trial.recipe for trial in stopped}
    best, left = best_recipe(drawn), best_recipe([t for t in finished if t.recipe not in out])
    return {
        "same": left == best,
        "time": spent / sum(t.seconds for t in drawn),
        "stopped": len(stopped),
        "false": best in out,
        "false stops": sum(t.recipe == best for t in stopped),
    }


def loses(trial: Recorded, share: float, finished: Sequence[Recorded]) -> bool:
    """Whether the harness would stop it here."""
    best = best_among([rival.points[share] for rival in finished if share in rival.points])
    return best is not None and has_lost(trial.points[share], best)


def best_recipe(trials: Sequence[Recorded]) -> str | None:
    """By its mean final score."""
    scores: dict[str, list[float]] = defaultdict(list)
    for trial in trials:
        scores[trial.recipe].append(trial.score)
    return max(scores, key=lambda recipe: statistics.fmean(scores[recipe]), default=None)


def told(trials: Sequence[Recorded], replays: Sequence[Mapping[str, Any]]) -> None:
    """The figures of all replays."""
    n, stops = len(replays), sum(r["stopped"] for r in replays)
    times = statistics.quantiles([r["time"] for r in replays], n=20)
    print(f"{len(trials)} trials of {len({t.recipe for t in trials})} recipes, {n} orders with seeds drawn anew")
    print(f"same best recipe as the whole grid: {sum(r['same'] for r in replays) / n:.1%}")
    print(
        f"training time against the whole grid: median {times[9]:.2f} (5 % to 95 %: {times[0]:.2f} to {times[-1]:.2f})"
    )
    print(f"trials stopped: {stops / n / len(trials):.1%}")
    print(f"orders in which a seed of the best recipe was stopped: {sum(r['false'] for r in replays) / n:.1%}")
    print(f"stops that hit the best recipe: {sum(r['false stops'] for r in replays) / max(1, stops):.2%}")


if __name__ == "__main__":
    main()
