"""How often the gate fails an unchanged recipe, and catches one that got worse: from the spread of real seeds.

    python -m harness -m experiment=ci "seed=range(100,124)" sweep=gate_seeds
    python scripts/gate_power.py --sweep gate_seeds

Splits of the sweep's seeds into a candidate of four and a baseline of the others are judged as the gate would: as they
are, and with one metric of the candidate made worse by five points (or by --loss). No seed is drawn twice.
"""

from __future__ import annotations

import argparse
import itertools
import random
from collections.abc import Mapping
from dataclasses import replace

from harness.gate import baseline as store
from harness.gate.baseline import Record
from harness.gate.decide import Outcome, decide
from harness.gate.rules import Rule, Rules, read_rules
from harness.store import results


def part(record: Record, chosen: frozenset[int]) -> Record:
    """The record with these seeds alone."""
    places = [i for i, seed in enumerate(record.seeds) if seed in chosen]
    values = {name: [v[i] for i in places] for name, v in record.metrics.items()}
    return replace(record, seeds=[record.seeds[i] for i in places], metrics=values)


def worse(record: Record, metric: str, rule: Rule, loss: float) -> Record:
    """The record with every value of ``metric`` moved by ``loss``, to its bad side."""
    moved = -loss if rule.direction == "up" else loss
    return replace(record, metrics={**record.metrics, metric: [v + moved for v in record.metrics[metric]]})


def main() -> None:
    """Print a line for the unchanged recipe and one for each loss."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", required=True)
    parser.add_argument("--tracking-uri", default="sqlite:///mlflow.db")
    parser.add_argument("--rules", default="ci")
    parser.add_argument("--candidate-seeds", type=int, default=4)
    parser.add_argument("--loss", type=float, default=0.05)
    parser.add_argument("--splits", type=int, default=2000, help="as many, drawn without repeats, where there are more")
    options = parser.parse_args()
    rules = read_rules(options.rules)
    recipes = store.records(results.from_mlflow(options.tracking_uri, options.sweep), list(rules.metrics))
    seeds = sorted(set.intersection(*(set(r.seeds) for r in recipes.values())))
    splits = [frozenset(c) for c in itertools.combinations(seeds, options.candidate_seeds)]
    if len(splits) > options.splits:
        splits = random.Random(0).sample(splits, options.splits)
    few = options.candidate_seeds
    print(f"{len(seeds)} seeds, {len(splits)} splits: {few} against the {len(seeds) - few} others")
    for label, record in recipes.items():
        for name, values in record.metrics.items():
            mean = sum(values) / len(values)
            spread = (sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5
            print(f"  {label}  {name}: {mean:.4g}, standard deviation {spread:.2g} over {len(values)} seeds")
    print(f"unchanged, gate fails: {share(recipes, splits, seeds, rules, None, 0):.2%}")
    for label, record in recipes.items():
        for name in record.metrics:
            if name.startswith("eval/") and rules.metrics[name].concerns(label):
                caught = share(recipes, splits, seeds, rules, (label, name), options.loss)
                print(f"{label}: {name} worse by {options.loss:g}, caught: {caught:.2%}")


def share(
    recipes: Mapping[str, Record],
    splits: list[frozenset[int]],
    seeds: list[int],
    rules: Rules,
    planted: tuple[str, str] | None,
    loss: float,
) -> float:
    """Of the splits, those in which the gate fails; with a loss planted, those in which that metric regressed."""
    failed = 0
    for chosen in splits:
        before = {label: part(r, frozenset(seeds) - chosen) for label, r in recipes.items()}
        after = {label: part(r, chosen) for label, r in recipes.items()}
        if planted:
            after[planted[0]] = worse(after[planted[0]], planted[1], rules.metrics[planted[1]], loss)
        findings = decide(before, after, rules)
        if planted:
            failed += any((f.recipe, f.metric) == planted and f.outcome is Outcome.REGRESSED for f in findings)
        else:
            failed += any(f.fails for f in findings)
    return failed / len(splits)


if __name__ == "__main__":
    main()
