"""Which recipe to take: the front of quality, memory and time, and the three sentences a reader wants. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness import text
from harness.report.recipes import Recipe, interval
from harness.stats import Comparison, Verdict

ALIKE = 1.05
"""Factor within which two memories or two times are the same."""

Verdicts = Mapping[tuple[str, str], Comparison]


def front(found: Sequence[Recipe], metric: str, verdicts: Verdicts) -> set[str]:
    """Labels of the recipes that no other one beats on quality, memory and time together.

    One recipe beats another where it is better or a tie in quality (its verdict; without one, its mean is not below),
    takes no more memory and time, and is better in one of the three by more than noise.
    """
    return {r.label for r in found if not any(_beats(other, r, metric, verdicts) for other in found if other is not r)}


def _beats(one: Recipe, other: Recipe, metric: str, verdicts: Verdicts) -> bool:
    comparison = verdicts.get((one.label, other.label))
    mine, theirs = one.mean(metric), other.mean(metric)
    if mine is None or theirs is None:
        return mine is not None
    if comparison is None:
        better, worse = mine > theirs, mine < theirs
    else:
        better, worse = comparison.verdict is Verdict.BETTER, comparison.verdict in (Verdict.WORSE, Verdict.OPEN)
    ratios = [
        a / b
        for a, b in ((one.mean("memory/peak_mb"), other.mean("memory/peak_mb")), (one.training_s(), other.training_s()))
        if a is not None and b
    ]
    if worse or any(r > ALIKE for r in ratios):
        return False
    return better or any(r < 1 / ALIKE for r in ratios)


def sentences(found: Sequence[Recipe], metric: str, verdicts: Verdicts, words: str, base: float | None) -> list[str]:
    """The best recipe, the cheapest that ties with it, and what to avoid; each says how sure it is."""
    best = found[0]
    against = "" if base is None else f" (base: {text.number(base)})"
    said = [f"Best {words}: **{text.escape(best.label)}** with {interval(best.estimate(metric))}{against}."]
    if len(found) > 1:
        said += [_cheapest(found, verdicts), _worst(found, metric, verdicts, base)]
    return [s for s in said if s]


def _cheapest(found: Sequence[Recipe], verdicts: Verdicts) -> str:
    best = found[0]
    if not any((r.label, best.label) in verdicts for r in found[1:]):
        return ""
    ties = [r for r in found[1:] if (c := verdicts.get((r.label, best.label))) and c.verdict is Verdict.TIE]
    open_ = [r for r in found[1:] if (c := verdicts.get((r.label, best.label))) and c.verdict is Verdict.OPEN]
    costs = [(s, r) for r in [best, *ties] if (s := r.training_s()) is not None]
    if not costs:
        return ""
    seconds, cheap = min(costs, key=lambda pair: pair[0])
    memory = cheap.mean("memory/peak_mb")
    price = f"{text.seconds(seconds)} s of training" + ("" if memory is None else f" and {text.whole(memory)} MB")
    if ties and cheap is not best:
        return f"Cheapest within a tie of it: **{text.escape(cheap.label)}**, {price}."
    if ties:
        return f"It is also the cheapest among the {len(ties) + 1} that tie, {price}."
    if open_:
        unsettled = text.count(len(open_), "recipe")
        return f"None is shown to tie with it, and {unsettled} would need more seeds to tell. It takes {price}."
    return f"Nothing ties with it; it takes {price}."


def _worst(found: Sequence[Recipe], metric: str, verdicts: Verdicts, base: float | None) -> str:
    """The recipe that is worst for certain: below the base, else shown worse than the best."""
    last = found[-1]
    estimate, comparison = last.estimate(metric), verdicts.get((last.label, found[0].label))
    if estimate is None:
        return ""
    name = f"**{text.escape(last.label)}**"
    if base is not None and estimate.high is not None and estimate.high < base:
        return f"Avoid {name}: {interval(estimate)} is below the base."
    if comparison is not None and comparison.verdict is Verdict.WORSE:
        return (
            f"Avoid {name}: worse than the best by {text.number(-comparison.interval.mean)}, at {interval(estimate)}."
        )
    return ""
