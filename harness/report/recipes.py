"""Trials that differ in their seed alone are one recipe: its mean, its interval, how it compares. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from harness.base import formatting, stats
from harness.base.records import Outcome
from harness.base.stats import Comparison, Interval, Verdict
from harness.report.intervals import LEGEND, SHORT_LEGEND, gap_of, interval, is_share, known, measured, short_interval
from harness.report.leaderboard import FRONT, HOURS, Price, finished, hours_of, told_apart, training_s

MARGINS: Mapping[str, float] = {
    f"eval/{name}": stats.SAME for name in ("true_reward", "correct", "preference_accuracy")
}
"""Differences smaller than this do not matter: seeds of one recipe differ by as much (docs/metrics.md)."""
UNITS = {"eval/true_reward": "eval_prompts", "eval/correct": "eval_prompts", "eval/preference_accuracy": "eval_pairs"}
"""Where a metric's results per example are kept."""
COLUMNS = {
    "pref. acc.": "eval/preference_accuracy",
    "true reward": "eval/true_reward",
    "Δ true reward": "delta/true_reward",
    "correct": "eval/correct",
    "KL": "eval/kl_per_sequence",
}
CLUSTER = "cluster"
"""Column of results per example: examples of one prompt share it."""
UNTRAINED = "none"
"""The algorithm that leaves the base as it is."""
VERDICT = "vs. best"
WIDEST_VERDICT = 18  # "needs more seeds", with the number below it
DROPPED_FIRST = (HOURS, "tokens/s", "Δ true reward", "correct", "pref. acc.", "KL", "train s", "peak MB")
"""What a terminal that is too narrow goes without, in this order."""
MOST_COMPARED = 40
"""Recipes that are compared with one another, the best by their means; the correction grows with every pair."""

Examples = Mapping[str, pd.DataFrame]
"""Trial id -> its results per example: a column ``example`` and one per metric."""


@dataclass(frozen=True)
class Recipe:
    """Finished trials of one recipe, one per seed.

    Attributes:
        label: of its trials, without the seed.
        frame: their rows, by seed.
    """

    label: str
    frame: pd.DataFrame

    @property
    def trained(self) -> bool:
        """Whether it trains: ``algo=none`` does not."""
        return "algo" not in self.frame or str(self.frame["algo"].iloc[0]) != UNTRAINED

    def values(self, metric: str) -> list[float]:
        """One per seed that has it."""
        return [float(v) for v in known(self.frame, metric)]

    def estimate(self, metric: str) -> Interval | None:
        """Mean over seeds with a t interval; never narrower than that of the held-out rows, which all seeds share.

        Two seeds that coincide have no spread, and are not certain for that. Of one seed its own figure.
        """
        values, rows = self.values(metric), [found for r in self.rows if (found := measured(r, metric)) is not None]
        if len(values) < 2:
            return rows[0] if rows else None
        found = stats.t_interval(values)
        if found.low is None or found.high is None:
            return found
        below = [r.mean - r.low for r in rows if r.low is not None]
        above = [r.high - r.mean for r in rows if r.high is not None]
        low = min(found.low, found.mean - math.fsum(below) / max(1, len(below)))
        high = max(found.high, found.mean + math.fsum(above) / max(1, len(above)))
        if is_share(metric):
            low, high = max(0.0, low), min(1.0, high)
        return Interval(found.mean, low, high, len(values), "t")

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Of its trials; made once, since a frame of many columns gives its rows slowly."""
        return [{str(k): v for k, v in row.items()} for row in self.frame.to_dict("records")]

    def mean(self, metric: str) -> float | None:
        """Over the seeds that have it."""
        values = self.values(metric)
        return math.fsum(values) / len(values) if values else None

    def training_s(self) -> float | None:
        """Mean seconds of training, rollouts included."""
        found = training_s(self.frame).dropna()
        return float(found.mean()) if len(found) else None

    def hours(self) -> float | None:
        """Mean hours that a trial had the device, less what it built for all trials."""
        found = [h for row in self.rows if (h := hours_of(row)) is not None]
        return math.fsum(found) / len(found) if found else None

    def scores(self, metric: str, examples: Examples) -> stats.Scores:
        """Per known seed the results per example, or the mean alone where ``examples`` has none."""
        if metric not in self.frame:
            return {}
        rows = pd.DataFrame(self.frame[["seed", "trial_id", metric]]).dropna(subset=["seed", metric])
        return {
            int(seed): [float(value)] if (kept := examples.get(trial_id)) is None else list(kept[column_of(metric)])
            for seed, trial_id, value in rows.itertuples(index=False)
        }


def recipes(frame: pd.DataFrame, metric: str | None = None) -> list[Recipe]:
    """The recipes of the finished trials, those with the highest mean of ``metric`` first.

    Of trials that share a seed the last counts; of those whose seed is not known, each. A recipe of which a seed was
    stopped (``runner.stop_losing``) is left out: those that went on are its lucky ones.
    """
    labelled = frame.assign(recipe=recipe_labels(frame))
    named = finished(pd.DataFrame(labelled[~labelled["recipe"].isin(with_stopped_seeds(labelled))]))
    named = named.sort_values("seed", kind="stable")
    repeated = named.duplicated(["recipe", "seed"], keep="last") & named["seed"].notna()
    kept = named[~repeated]
    found = [Recipe(str(label), pd.DataFrame(rows)) for label, rows in kept.groupby("recipe", sort=False)]

    def key(recipe: Recipe) -> tuple[float, str]:
        mean = recipe.mean(metric) if metric else None
        return float("inf") if mean is None else -mean, recipe.label

    return sorted(found, key=key)


def with_stopped_seeds(labelled: pd.DataFrame) -> list[str]:
    """The recipes (column ``recipe``) of which a trial was stopped for losing, in order."""
    return list(dict.fromkeys(labelled.loc[labelled["outcome"] == Outcome.STOPPED, "recipe"]))


def averages(found: Sequence[Recipe]) -> pd.DataFrame:
    """A row per recipe, in the columns of its trials: numbers are means over seeds, texts those of the first seed.

    With several seeds ``…_stderr`` is the standard error of that mean, and no longer that of the held-out rows;
    ``…_low`` and ``…_high`` are the bounds of ``Recipe.estimate``.
    """
    rows = []
    for recipe in found:
        numbers: Any = recipe.frame.select_dtypes("number")
        row = {**recipe.frame.iloc[0].to_dict(), **numbers.mean().to_dict(), "label": recipe.label}
        if len(recipe.frame) > 1:
            errors = numbers.std(ddof=1) / numbers.count() ** 0.5
            row |= {name: errors[name.removesuffix("_stderr")] for name in numbers if _is_error(name, numbers)}
            for name in {n.removesuffix("_stderr") for n in numbers if _is_error(n, numbers)}:
                if (bounds := recipe.estimate(name)) is not None:
                    row |= {f"{name}_low": bounds.low, f"{name}_high": bounds.high}
        rows.append(row)
    return pd.DataFrame(rows)


def _is_error(name: str, numbers: pd.DataFrame) -> bool:
    """Whether a column is the error of a figure that seeds differ in; all have the base in common."""
    return name.endswith("_stderr") and name.removesuffix("_stderr") in numbers and not name.startswith("baseline/")


def recipe_labels(frame: pd.DataFrame) -> list[str]:
    """What the recipe of each trial is called, whatever became of it; distinct recipes have distinct names.

    It is the trial's id without digest and seed, with the settings in which namesakes differ.
    """
    keys = recipe_keys(frame)
    first = {key: place for place, key in reversed(list(enumerate(keys)))}
    aside = [*_seeds_of_parts(frame.columns, frame), "sweep"]  # a recipe is of none
    rows = frame.drop(columns=aside, errors="ignore").iloc[list(first.values())]
    names = told_apart([formatting.without_seed(formatting.short_id(t)) for t in rows["trial_id"]], rows)
    by_key = dict(zip(first, names, strict=True))
    return [by_key[key] for key in keys]


def recipe_keys(frame: pd.DataFrame) -> list[str]:
    """What a trial has in common with the other seeds of its recipe: every setting of training but the seed.

    A part whose seed is the trial's in every row (``reward.seed=${seed}``) has another draw with each seed, and is not
    another recipe for that. A task's seed is left: other rows are another question.
    """
    settings = frame.filter(regex=r"^params\.(?!eval\.|seed$|train\.seed$)").astype("str").fillna("")
    settings = settings.drop(columns=_seeds_of_parts(settings.columns, frame))
    if settings.shape[1] == 0:
        return [str(t) for t in frame["trial_id"]]
    return ["\n".join(row) for row in settings.itertuples(index=False)]


def _seeds_of_parts(columns: Collection[Any], frame: pd.DataFrame) -> list[str]:
    """Of the columns those that hold the seed of each trial, of whatever but the task."""
    named = [c for c in map(str, columns) if c.endswith(".seed") and not c.startswith("params.task.")]
    return [c for c in named if "seed" in frame and _alike(pd.DataFrame(frame[[c, "seed"]]).dropna())]


def _alike(rows: pd.DataFrame) -> bool:
    """Whether both columns hold the same numbers, and not one number alone."""
    one, other = (pd.Series(pd.to_numeric(rows[c], errors="coerce")) for c in rows)
    return bool((one == other).all()) and one.nunique() > 1


def compared(found: Sequence[Recipe], metric: str | None, examples: Examples) -> dict[tuple[str, str], Comparison]:
    """Every two of the best recipes (``MOST_COMPARED``), each by all of its seeds, by their labels.

    Nothing where there are no two with several seeds, and they were not judged on the same examples either.
    """
    if metric is None:
        return {}
    found = found[:MOST_COMPARED]
    table = aligned(found, metric, examples)
    scores = {r.label: seeds for r in found if (seeds := r.scores(metric, {} if table is None else examples))}
    several = [label for label, seeds in scores.items() if len(seeds) > 1]
    if len(scores) < 2 or (table is None and len(several) < 2):
        return {}
    return stats.compare_all(scores, margin=MARGINS.get(metric, 0.0), clusters=clusters_of(table))


def aligned(found: Sequence[Recipe], metric: str, examples: Examples) -> pd.DataFrame | None:
    """One trial's results per example, where every trial has them of the same examples; else None."""
    tables = [examples.get(str(trial_id)) for recipe in found for trial_id in recipe.frame["trial_id"]]
    kept = [t for t in tables if t is not None and column_of(metric) in t]
    alike = len(kept) == len(tables) and len({tuple(t["example"]) for t in kept}) == 1
    return kept[0] if alike else None


def clusters_of(table: pd.DataFrame | None) -> list[str] | None:
    """The prompt of each example; None where results are older than that column: each is then its own."""
    return None if table is None or CLUSTER not in table else [str(c) for c in table[CLUSTER]]


def column_of(metric: str) -> str:
    """A metric's name without its side, as in tables of results per example."""
    return metric.partition("/")[2]


def table_of(metric: str | None) -> str | None:
    """Name of the table that holds a metric's results per example; None where none is known to."""
    if metric is None or metric in UNITS:
        return UNITS.get(metric or "")
    task, _, score = column_of(metric).rpartition("/")
    return f"eval_lm_eval_{task}" if task and score else None


def table(
    found: Sequence[Recipe],
    verdicts: Mapping[tuple[str, str], Comparison],
    form: Callable[[Interval | None], str] | None = None,
    front: Collection[str] = (),
    price: Price | None = None,
) -> pd.DataFrame:
    """One row per recipe, as text; intervals are 95 %, written by ``form`` (``interval``); ``front`` gets a mark."""
    form = form or interval
    rows = []
    for recipe in found:
        row = {"recipe": recipe.label + (f" {FRONT}" if recipe.label in front else ""), "seeds": str(len(recipe.frame))}
        row |= {heading: form(recipe.estimate(name)) for heading, name in COLUMNS.items()}
        row["peak MB"] = formatting.whole(recipe.mean("memory/peak_mb"))
        row["train s"] = formatting.seconds(recipe.training_s())
        row["tokens/s"] = formatting.whole(recipe.mean("throughput/train_tokens_per_s"))
        hours = recipe.hours()
        row[HOURS] = formatting.number(hours)
        if price is not None:
            row[price.heading] = price.of(hours)
        verdict = verdicts.get((recipe.label, found[0].label), formatting.MISSING)
        row["against the best"] = "best" if recipe is found[0] else str(verdict)
        rows.append(row)
    board = pd.DataFrame(rows)
    empty = [c for c in COLUMNS if set(board[c]) == {formatting.MISSING}]
    return board.drop(columns=empty)


def several_seeds(found: Sequence[Recipe]) -> bool:
    """Whether some recipe was trained with more than one seed."""
    return any(len(recipe.frame) > 1 for recipe in found)


def section(
    found: Sequence[Recipe],
    metric: str | None,
    verdicts: Mapping[tuple[str, str], Comparison],
    front: Collection[str] = (),
    *,
    most: int | None = None,
    price: Price | None = None,
    hours: str = HOURS,
) -> list[str]:
    """The report's leaderboard of recipes; nothing where none has several seeds.

    Args:
        found: recipes, the best first.
        metric: that ranks.
        verdicts: of every two that were compared.
        front: labels that get a mark.
        most: rows; None is all.
        price: of an hour of the device.
        hours: heading of the hours.
    """
    if not several_seeds(found):
        return []
    board = table(found[:most], verdicts, front=front, price=price).rename(columns={HOURS: hours})
    body = [[formatting.escape(label), *rest] for label, *rest in board.itertuples(index=False)]
    words = f"{LEGEND}: of means over seeds (Student's t), at least as wide as those of the rows that all seeds share."
    if len(board) < len(found):
        words += f" The best {len(board)} of {len(found):,} recipes are shown."
    if verdicts and metric:
        one = next(iter(verdicts.values()))
        pairs = formatting.count(sum(c.seeds > 1 for c in verdicts.values()) // 2, "comparison")
        words += f" The verdict is on {column_of(metric).replace('_', ' ')}, corrected for {pairs} (Holm)."
        words += f" A tie lies between -{one.margin} and {one.margin}." if one.margin else ""
        if len(found) > MOST_COMPARED:
            words += f" Of the {len(found):,} recipes the best {MOST_COMPARED} were compared."
    if front:
        by = "the 95 % interval of each pair that was compared" if verdicts else "the means"
        words += f" {FRONT}: no other beats it on quality, memory and time together, by {by}."
    return ["## Leaderboard", formatting.table([formatting.escape(c) for c in board.columns], body), words]


def runner_up(found: Sequence[Recipe], metric: str, verdicts: Mapping[tuple[str, str], Comparison]) -> str | None:
    """How the best recipe compares with the second, and over what; None where there is no second."""
    best, second = (*(r.estimate(metric) for r in found[:2]), None, None)[:2]
    if best is None or second is None:
        return None
    said = f"The runner-up, **{formatting.escape(found[1].label)}** ({interval(second)}), is"
    comparison = verdicts.get((found[0].label, found[1].label))
    if comparison is None:
        return f"{said} {formatting.number(best.mean - second.mean)} behind; the two were not compared row by row."
    gap = gap_of(comparison.interval, metric)
    bounds = "" if gap.low is None else f" (95 %: {formatting.number(gap.low)} to {formatting.number(gap.high)})"
    rows = f"{comparison.examples} held-out rows, paired"
    over = formatting.count(comparison.seeds, "seed") if comparison.seeds > 1 else rows
    verdict = {
        Verdict.BETTER: "the best is better",
        Verdict.WORSE: "the best is worse",
        Verdict.TIE: f"a tie, between -{comparison.margin} and {comparison.margin}",
        Verdict.OPEN: str(comparison),
        Verdict.ONE_SEED: "one seed settles nothing",
    }[comparison.verdict]
    return f"{said} {formatting.number(gap.mean)} behind{bounds} over {over}: {verdict}."


def render_terminal(found: Sequence[Recipe], verdicts: Mapping[tuple[str, str], Comparison], width: int = 100) -> str:
    """The same table for a terminal, intervals written short."""
    from io import StringIO

    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    board = (
        table(found, verdicts, short_interval).map(formatting.printable).rename(columns={"against the best": VERDICT})
    )
    needs = {name: 2 + max(map(len, [str(name), *board[name]])) for name in board.columns}
    needs[VERDICT] = WIDEST_VERDICT
    for name in DROPPED_FIRST:
        if sum(needs.values()) > width and needs.pop(name, None):
            board = board.drop(columns=name)
    grid = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for name in board.columns:
        wide = WIDEST_VERDICT if name == VERDICT else None
        grid.add_column(
            name, justify="left" if name in ("recipe", VERDICT) else "right", no_wrap=wide is None, min_width=wide
        )
    for row in board.itertuples(index=False):
        grid.add_row(*(Text(cell) for cell in row))
    stream = StringIO()
    console = Console(file=stream, width=width, no_color=True)
    console.print(grid)
    console.print(Text(f"{SHORT_LEGEND}, over seeds and held-out rows"))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()).strip("\n")
