"""The page of a tuning: what each algorithm's search found, its winner on the test split, and what luck explains."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.base import best_of, formatting, stats
from harness.base.errors import UserError
from harness.base.stats import Comparison, Interval, Verdict
from harness.report.figures import tuning
from harness.report.intervals import interval
from harness.report.recipes import Recipe, column_of
from harness.report.sources import Folder
from harness.report.standings import Standings, find

SURE = 0.05


@dataclass(frozen=True)
class Arm:
    """What was tuned, and what came of it.

    Attributes:
        words: what tells it from the others, such as ``algo=dpo``.
        space: what was turned, in words.
        scores: of every trial on the validation split; of one that did not finish that of the base.
        winner: the best of them that finished; None where none did.
        overrides: of the winner, in full.
        turned: what of them was drawn.
    """

    words: str
    space: Sequence[str]
    scores: Sequence[float]
    winner: float | None
    overrides: tuple[str, ...]
    turned: tuple[str, ...]


@dataclass(frozen=True)
class Contested:
    """Two arms: what their searches say, and what their winners say.

    Attributes:
        search: expected best of half of the draws, first less second.
        p: of that, corrected for all pairs (Holm).
        winners: on the test split, over seeds; None where they were not compared.
    """

    search: float
    p: float
    winners: Comparison | None

    @property
    def verdict(self) -> Verdict:
        """Better or worse where searches and winners say the same, and luck explains neither; else a tie."""
        told = self.winners.verdict if self.winners is not None else Verdict.OPEN
        if self.p >= SURE or told not in (Verdict.BETTER, Verdict.WORSE):
            return Verdict.TIE
        return told if (told is Verdict.BETTER) == (self.search > 0) else Verdict.TIE

    def says(self, one: str, other: str) -> str:
        """One sentence."""
        gap = (
            "were not compared" if self.winners is None else f"differ by {interval(self.winners.interval, signed=True)}"
        )
        search = f"their searches by {formatting.number(self.search)} (p {self.p:.2g})"
        if self.verdict is Verdict.TIE:
            why = "which is no more than the luck of the draws" if self.p >= SURE else "and the winners settle nothing"
            return f"{one} and {other} tie at this budget: the winners {gap} on the test split, and {search}, {why}."
        first, second = (one, other) if self.verdict is Verdict.BETTER else (other, one)
        return f"{first} beats {second}: the winners {gap} on the test split, and {search}."


def contested(arms: Sequence[Arm], winners: Mapping[tuple[int, int], Comparison]) -> dict[tuple[int, int], Contested]:
    """Every two arms, by their places; p-values of searches by Holm's procedure.

    Args:
        arms: with the same number of independent draws each.
        winners: comparisons of their winners, those of a pair as first less second.
    """
    pairs = list(itertools.combinations(range(len(arms)), 2))
    found = [best_of.told_apart(arms[a].scores, arms[b].scores) for a, b in pairs]
    p_values = stats.holm([p for _, p in found])
    return {
        pair: Contested(difference, p, winners.get(pair))
        for pair, (difference, _), p in zip(pairs, found, p_values, strict=True)
    }


def write_page(
    arms: Sequence[Arm], trials: Sequence[Sequence[str]], folder: Path, metric: str, draws: int, *, adaptive: bool
) -> tuple[Path, list[str]]:
    """Write ``reports/<search>/tuning.md`` and its plot; returns its path, and what it says first.

    Args:
        arms: what was tuned.
        trials: ids of the trials of each arm's winner.
        folder: of the winners' trials.
        metric: that chose them.
        draws: trials of each search.
        adaptive: points depended on those before them, so that nothing is told of fewer.

    Raises:
        UserError: the page cannot be written.
    """
    source = Folder(folder)
    standings = find(source.frame, source.examples, metric)
    recipes = [next((r for r in standings.recipes if set(r.frame["trial_id"]) & set(ids)), None) for ids in trials]
    pairs = {} if adaptive else contested(arms, _of_winners(recipes, standings))
    order = sorted(range(len(arms)), key=lambda i: -_mean(recipes[i], metric))
    sentences = _sentences([a.words for a in arms], order, pairs, adaptive)
    escaped = _sentences([formatting.escape(a.words) for a in arms], order, pairs, adaptive)
    out = Path("reports") / folder.name.removesuffix("-winners")
    try:
        out.mkdir(parents=True, exist_ok=True)
        plot = [] if adaptive else ["![Expected best of so many trials](expected_best.png)"]
        if plot:
            tuning.expected_best({a.words: a.scores for a in arms}, column_of(metric), out / "expected_best.png")
        page = out / "tuning.md"
        body = [
            f"# Equal tuning: {', '.join(formatting.escape(a.words) for a in arms)}",
            "\n".join(f"- {line}" for line in escaped),
            f"{draws} trials each, chosen by {column_of(metric).replace('_', ' ')} on the validation split; the "
            "winners were trained anew with other seeds and judged on the test split.",
            formatting.table(*_rows(arms, recipes, order, metric, adaptive=adaptive), left=3),
            *plot,
            _legend(draws, adaptive=adaptive),
        ]
        page.write_text("\n\n".join(body) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"the page cannot be written ({error.strerror})", key="reports", value=str(out)) from None
    return page, sentences


def _of_winners(recipes: Sequence[Recipe | None], standings: Standings) -> dict[tuple[int, int], Comparison]:
    found = {}
    for a, b in itertools.combinations(range(len(recipes)), 2):
        one, other = recipes[a], recipes[b]
        comparison = standings.verdicts.get((one.label, other.label)) if one is not None and other is not None else None
        if comparison is not None:
            found[a, b] = comparison
    return found


def _mean(recipe: Recipe | None, metric: str) -> float:
    mean = None if recipe is None else recipe.mean(metric)
    return float("-inf") if mean is None else mean


def _sentences(
    names: Sequence[str], order: Sequence[int], pairs: Mapping[tuple[int, int], Contested], adaptive: bool
) -> list[str]:
    """The best against each of the others."""
    if adaptive:
        words = "an adaptive search says nothing of its own luck, so the winners' seeds alone tell"
        return [f"{names[order[0]]} has the best winner; {words} how sure that is."]
    said = []
    for other in order[1:]:
        first, second = sorted((order[0], other))
        said.append(pairs[first, second].says(names[first], names[second]))
    return said or [f"{names[order[0]]} was tuned alone."]


def _rows(
    arms: Sequence[Arm], recipes: Sequence[Recipe | None], order: Sequence[int], metric: str, *, adaptive: bool
) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the table of arms, the best winner first."""
    half = best_of.half(len(arms[0].scores))
    heads = ["", "searched", "winner", "validation", f"expected best of {half}", "test, seeds"]
    rows = []
    for i in order:
        arm, recipe = arms[i], recipes[i]
        expected: Interval | None = None if adaptive else best_of.curve(arm.scores)[half - 1]
        test = formatting.MISSING
        if recipe is not None:
            test = f"{interval(recipe.estimate(metric))}, {len(recipe.frame)}"
        cells = [arm.words, "; ".join(arm.space), ", ".join(arm.turned), formatting.number(arm.winner)]
        rows.append([*map(formatting.escape, cells), interval(expected), test])
    kept = [i for i in range(len(heads)) if not (adaptive and i == 4)]
    return [heads[i] for i in kept], [[row[i] for i in kept] for row in rows]


def _legend(draws: int, *, adaptive: bool) -> str:
    if adaptive:
        return "Points were drawn by what the points before them gave (TPE). Random draws would tell how much is luck."
    return (
        "*Expected best* is the mean of the highest score over all subsets of so many draws; brackets and bands "
        f"hold the 95 % interval of the luck of {draws} draws (bootstrap). One algorithm *beats* another where the "
        f"seeds of the winners say so on the test split and the searches, at {best_of.half(draws)} draws each, differ "
        "by more than luck (permutation test, Holm). The winners alone would not do: with equal algorithms they differ "
        "in a quarter to a half of all tunings, since each is one draw's luck."
    )
