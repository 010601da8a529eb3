"""How often a sweep of equal recipes gets a verdict it should not, and how often a real difference is found: simulated.

    python scripts/verdict_power.py --sweeps 1000

Sweeps are drawn as the embedded task makes them: every trial of a sweep answers the same held-out examples, which have
difficulties of their own; a seed moves a recipe's level; what is sampled for an example has noise of its own; values
lie on a grid. Each sweep is judged by ``harness.base.stats.compare_all``, as a report judges it.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from harness.base import stats
from harness.base.stats import Verdict

CLAIMS = (Verdict.BETTER, Verdict.WORSE)


@dataclass(frozen=True)
class World:
    """Where sweeps are drawn from.

    Attributes:
        recipes, seeds: of a sweep.
        deviation: between the seeds of a recipe, in the metric's unit.
        steps: of the grid in one unit; None leaves values as they are.
        examples: held-out rows whose results are kept; 0 keeps the means alone.
        noise: deviation of an example's value, sampled anew in every trial.
        shared: share of a seed's variance that all recipes have in common (order of the data).
        unlike: log-deviation of the recipes' own spreads; 0 where all spread alike.
        odd: factor by which the first recipe spreads more.
    """

    recipes: int = 2
    seeds: int = 3
    deviation: float = 0.01
    steps: int | None = None
    examples: int = 0
    noise: float = 0.3
    shared: float = 0.0
    unlike: float = 0.0
    odd: float = 1.0

    def draw(self, rng: np.random.Generator, gain: float = 0.0) -> dict[str, dict[int, list[float]]]:
        """One sweep; the last recipe is better by ``gain`` deviations between seeds."""
        common = rng.normal(0, self.deviation * math.sqrt(self.shared), self.seeds)
        ease = rng.normal(0, 0.2, max(1, self.examples))
        found: dict[str, dict[int, list[float]]] = {}
        for place in range(self.recipes):
            factor = self.odd if place == 0 else 1.0
            own = self.deviation * factor * math.exp(rng.normal(0, self.unlike)) * math.sqrt(1 - self.shared)
            better = gain * self.deviation * (place == self.recipes - 1)
            found[f"r{place}"] = {
                seed: self._values(0.5 + common[seed] + rng.normal(0, own) + better, ease, rng)
                for seed in range(self.seeds)
            }
        return found

    def _values(self, level: float, ease: np.ndarray, rng: np.random.Generator) -> list[float]:
        values = np.array([level])
        if self.examples:
            values = level + ease - ease.mean() + rng.normal(0, self.noise, self.examples)
        return (values if self.steps is None else np.round(values * self.steps) / self.steps).tolist()


def alarms(world: World, sweeps: int, seed: int = 0) -> float:
    """Share of sweeps of equal recipes in which some pair is called better or worse."""
    rng = np.random.default_rng(seed)
    return sum(bool(claims(world.draw(rng))) for _ in range(sweeps)) / sweeps


def found(world: World, sweeps: int, gain: float = 3.0, seed: int = 0) -> float:
    """Of the pairs that truly differ, by ``gain`` deviations between seeds, the share that is called so."""
    rng, right = np.random.default_rng(seed), 0
    best = f"r{world.recipes - 1}"
    for _ in range(sweeps):
        right += sum(first == best and better for (first, _), better in claims(world.draw(rng, gain)).items())
    return right / sweeps / (world.recipes - 1)


def claims(sweep: dict[str, dict[int, list[float]]]) -> dict[tuple[str, str], bool]:
    """Pairs that are called better or worse -> whether it is better."""
    verdicts = {} if len(sweep) < 2 else stats.compare_all(sweep, margin=0.0)
    return {pair: c.verdict is Verdict.BETTER for pair, c in verdicts.items() if c.verdict in CLAIMS}


GRIDS: dict[str, Callable[[World], World]] = {
    "continuous": lambda w: w,
    "multiples of 1/512": lambda w: replace(w, steps=512),
    "multiples of 1/100": lambda w: replace(w, steps=100),
    "multiples of 1/30": lambda w: replace(w, steps=30),
    "200 examples, steps of ¼": lambda w: replace(w, examples=200, steps=4),
    "half of it shared by seeds": lambda w: replace(w, steps=512, shared=0.5),
}
"""What the metric is like; seeds of a recipe differ by 0.01."""
UNLIKE: dict[str, Callable[[World], World]] = {
    "spreads differ (log-deviation 0.7)": lambda w: replace(w, unlike=0.7),
    "one recipe spreads 3 times as much": lambda w: replace(w, odd=3.0),
    "one recipe spreads 5 times as much": lambda w: replace(w, odd=5.0),
}


def main() -> None:
    """Print the tables of docs/metrics.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sweeps", type=int, default=2000, help="drawn for each figure; a fifth where there are 20 recipes"
    )
    options = parser.parse_args()
    kinds = [(k, n) for k in (2, 5, 20) for n in (2, 3, 4)]
    print("| metric | " + " | ".join(f"{k} × {n}" for k, n in kinds) + " |")
    print("| :--- |" + " ---: |" * len(kinds))
    for name, made in {**GRIDS, **UNLIKE}.items():
        shares = [alarms(made(World(k, n)), options.sweeps // (5 if k == 20 else 1)) for k, n in kinds]
        print(f"| {name} | " + " | ".join(f"{s:.1%}" for s in shares) + " |", flush=True)
    for gain in (3.0, 5.0):
        shares = [found(World(k, n, steps=512), options.sweeps // (5 if k == 20 else 1), gain) for k, n in kinds]
        print(f"| found: {gain:g} deviations | " + " | ".join(f"{s:.0%}" for s in shares) + " |", flush=True)


if __name__ == "__main__":
    main()
