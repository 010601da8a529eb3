"""Candidate against baseline, metric by metric. Pure.

The difference of the means carries a t interval with the spread of both sides pooled: a candidate of four seeds knows
its own spread badly, and the baseline's twenty know it well. Pooling supposes that a recipe's seeds spread alike
before and after; a candidate that spreads more widens the interval, and then the gate says `inconclusive`.
Values that coincide have no spread to show, and the metric's own step stands in for it (``spread``).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from harness.base.spread import smallest_step
from harness.config import fingerprint
from harness.gate.baseline import Record
from harness.gate.rules import Rule, Rules, change_of

POWER = 0.8
"""Chance of being found that makes a loss detectable."""
MOST_CHANGES = 8
"""Settings that are named."""


class Outcome(StrEnum):
    """Of one metric of one recipe."""

    REGRESSED = "regressed"
    IMPROVED = "improved"
    SAME = "same"
    INCONCLUSIVE = "inconclusive"
    MISSING = "missing"
    NOT_COMPARABLE = "not comparable"
    SKIPPED = "skipped"
    NEW = "new"
    CHANGED = "changed"


@dataclass(frozen=True)
class Finding:
    """What was decided.

    Attributes:
        recipe, metric: of what; no metric where it is about the whole recipe.
        outcome: the decision.
        note: why, in words.
        before, after: means.
        seeds: of baseline and candidate.
        change: after less before, in the metric's unit and its own sign.
        low, high: interval of the change.
        tolerance: loss that does not matter.
        fails: whether it fails the gate.
        detectable: the smallest loss that such a gate finds in 80 of 100 cases; None where it would find none.
        blind: whether a loss that the rule is for (``Rule.matters``) would mostly have gone unseen.
    """

    recipe: str
    metric: str | None
    outcome: Outcome
    note: str = ""
    before: float | None = None
    after: float | None = None
    seeds: tuple[int, int] | None = None
    change: float | None = None
    low: float | None = None
    high: float | None = None
    tolerance: float | None = None
    fails: bool = False
    detectable: float | None = None
    blind: bool = False


def decide(
    baseline: Mapping[str, Record],
    candidate: Mapping[str, Record],
    rules: Rules,
    unfinished: Mapping[str, str] | None = None,
    despite: Collection[str] = (),
) -> list[Finding]:
    """Every recipe of the baseline under every metric that the rules have for it, then the recipes that are new.

    Args:
        baseline: recipe -> values.
        candidate: the same of the sweep under test.
        rules: what may get worse.
        unfinished: recipe -> what became of trials of the candidate that did not finish.
        despite: digests (``dataset``, ``base``, ``evaluators``) that may differ; where they do, that is told.
    """
    unfinished = unfinished or {}
    pairs = [
        (label, name)
        for label, record in baseline.items()
        if label in candidate and not alike(record, candidate[label], despite).obstacles
        for name, rule in rules.metrics.items()
        if rule.concerns(label)
        and (name in record.metrics if rule.against == "record" else change_of(name) in candidate[label].metrics)
        and name in candidate[label].metrics
        and not _skipped(rule, record, candidate[label])
    ]
    alpha = rules.false_alarms / max(1, len(pairs))
    found: list[Finding] = []
    for label, record in baseline.items():
        found += _of_recipe(label, record, candidate.get(label), rules, alpha, unfinished.get(label), despite)
    found += [
        Finding(label, None, Outcome.NEW, "not in the baseline; gate --update takes it in")
        for label in candidate
        if label not in baseline
    ]
    return found


SAME_BASE = 0.005
"""By how much a figure of one base may differ, since the last digits of two processors tip a sample here and there."""
BEHAVES = {"evaluators": fingerprint.JUDGING, "base": fingerprint.BASE}
"""Digests that hold code -> the fingerprints that tell whether other code does the same."""


@dataclass(frozen=True)
class Alike:
    """Whether two records may be compared.

    Attributes:
        obstacles: what differs, in words.
        notes: what differs and was asked to be overlooked, or makes no difference.
    """

    obstacles: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def alike(before: Record, after: Record, despite: Collection[str] = ()) -> Alike:
    """Hold the digests of two records against each other; where they hold code, what it does decides.

    Args:
        before: the baseline's.
        after: the candidate's.
        despite: digests that may differ.
    """
    obstacles, notes = [], []
    for name in before.digests:
        old, new = before.digests.get(name, "unknown"), after.digests.get(name, "unknown")
        if old == new:
            continue
        other = f"other {name} {old} → {new}"
        if name in despite:
            notes.append(f"judged despite {other}")
            continue
        kind = BEHAVES.get(name)
        found = None if kind is None else fingerprint.compare(before.fingerprints, after.fingerprints, kind)
        if found is not None and found.alike:
            notes.append(f"{other}, and {found.why}")
        else:
            obstacles.append(other if found is None else f"{other} ({found.why})")
    return Alike(tuple(obstacles), tuple(notes))


def _of_recipe(
    label: str,
    before: Record,
    after: Record | None,
    rules: Rules,
    alpha: float,
    unfinished: str | None,
    despite: Collection[str],
) -> list[Finding]:
    if after is None:
        return [Finding(label, None, Outcome.MISSING, unfinished or "no trial of it in the candidate", fails=True)]
    found = []
    if unfinished:
        found.append(Finding(label, None, Outcome.MISSING, unfinished, fails=True))
    compared = alike(before, after, despite)
    if compared.obstacles:
        return [*found, Finding(label, None, Outcome.NOT_COMPARABLE, "; ".join(compared.obstacles), fails=True)]
    found += [Finding(label, None, Outcome.SKIPPED, note) for note in compared.notes]
    found += [
        Finding(label, None, Outcome.CHANGED, note)
        for note in (changed(before, after), other_base(before, after))
        if note
    ]
    for name, rule in rules.metrics.items():
        if not rule.concerns(label):
            continue
        if rule.against == "base" and name in after.metrics:
            found.append(_against_base(label, name, rule, after, rules, alpha))
            continue
        if name not in before.metrics:
            here = name in after.metrics
            note = "not in the baseline; gate --update takes it in" if here else "neither side has it"
            outcome, fails = Outcome.NEW if here else Outcome.SKIPPED, rules.fail_if_blind
            found.append(Finding(label, name, outcome, note, fails=fails, blind=True))
            continue
        if name not in after.metrics:
            found.append(Finding(label, name, Outcome.MISSING, "in the baseline and not in the candidate", fails=True))
        elif why := _skipped(rule, before, after):
            found.append(Finding(label, name, Outcome.SKIPPED, why))  # by the rule's own wish: not blind
        else:
            found.append(_decided(label, name, rule, before.metrics[name], after.metrics[name], rules, alpha))
    return found


def other_base(before: Record, after: Record) -> str | None:
    """What says that the two were not trained from the same base, though its recipe is the same: its own figures."""
    moved = [
        f"{name} {was:.4g} → {now:.4g}"
        for name, was in before.of_base.items()
        if (now := after.of_base.get(name)) is not None and abs(now - was) > SAME_BASE
    ]
    if not moved:
        return None
    return (
        f"the base itself measures otherwise before training ({', '.join(moved)}): another processor or other "
        "versions make another base of the same recipe; a baseline of this machine tells a recipe's change from it"
    )


def _skipped(rule: Rule, before: Record, after: Record) -> str | None:
    if rule.same_device and before.device != after.device:
        return f"measured on {before.device or 'an unknown device'}, now on {after.device or 'an unknown device'}"
    return None


def _decided(
    label: str, name: str, rule: Rule, before: Sequence[float], after: Sequence[float], rules: Rules, alpha: float
) -> Finding:
    reach, detectable = _reach(before, after, alpha)
    note = "one seed on either side says nothing of the spread" if reach is None else ""
    means, seeds = [math.fsum(side) / len(side) for side in (before, after)], (len(before), len(after))
    return _found(label, name, rule, means[0], means[1], seeds, reach, detectable, rules, note)


def _found(
    label: str,
    name: str,
    rule: Rule,
    mean_before: float,
    mean_after: float,
    seeds: tuple[int, int],
    reach: float | None,
    detectable: float | None,
    rules: Rules,
    note: str,
) -> Finding:
    """The finding of a difference of means, the half-width of its interval, and the loss that would be found."""
    change, tolerance = mean_after - mean_before, rule.tolerance(mean_before)
    low, high = (None, None) if reach is None else (change - reach, change + reach)
    outcome = _outcome(change if rule.direction == "up" else -change, reach, tolerance)
    detectable = None if detectable is None else max(detectable, tolerance)
    unseen = detectable is None or detectable > rule.matters(mean_before)
    blind = unseen and outcome is Outcome.INCONCLUSIVE
    fails = outcome is Outcome.REGRESSED or (outcome is Outcome.INCONCLUSIVE and rules.inconclusive == "fail")
    return Finding(
        label, name, outcome, note, mean_before, mean_after, seeds, change, low, high, tolerance,
        fails or (blind and rules.fail_if_blind), detectable, blind,
    )  # fmt: skip


def _against_base(label: str, name: str, rule: Rule, after: Record, rules: Rules, alpha: float) -> Finding:
    """Each seed against the base that it started from: a mean of changes, with a t interval of their own."""
    changes, own = after.metrics.get(change_of(name)), after.metrics[name]
    if changes is None:
        note = "the base was not judged (eval.baseline=none), or could not be"
        return Finding(label, name, Outcome.SKIPPED, note, fails=rules.fail_if_blind, blind=True)
    change, mean_after = math.fsum(changes) / len(changes), math.fsum(own) / len(own)
    mean_before = mean_after - change
    reach, detectable = _reach_of_changes(changes, alpha)
    note = "against the base" + ("" if reach is not None else "; one seed says nothing of the spread")
    return _found(label, name, rule, mean_before, mean_after, (len(own), len(own)), reach, detectable, rules, note)


def changed(before: Record, after: Record) -> str:
    """Which settings of a recipe are others under the same name, with both values; empty where none is.

    Settings that one side alone knows are left out: a newer harness may have more of them.
    """
    if not before.config:
        return "the baseline holds no settings: whether the recipe is another one under this name cannot be told"
    both = before.config.keys() & after.config.keys()
    found = [f"{k} {before.config[k]} → {after.config[k]}" for k in sorted(both) if before.config[k] != after.config[k]]
    more = f" and {len(found) - MOST_CHANGES} more" if len(found) > MOST_CHANGES else ""
    return f"another recipe under this name: {'; '.join(found[:MOST_CHANGES])}{more}" if found else ""


def _reach(before: Sequence[float], after: Sequence[float], alpha: float) -> tuple[float | None, float | None]:
    """Half-width of the difference's interval, and the loss that lies beyond it in 80 of 100 cases.

    Each side of the interval errs with probability ``alpha``. The spread is at least what the metric's step allows:
    values that coincide, or nearly do, are certain of nothing.
    """
    from scipy.stats import t

    n, m = len(before), len(after)
    freedom = n + m - 2
    if freedom < 1 or min(n, m) < 2:
        return None, None
    squares = sum((v - math.fsum(side) / len(side)) ** 2 for side in (before, after) for v in side)
    variance = max(squares / freedom, smallest_step([*before, *after]) ** 2 / 4)
    error = math.sqrt(variance * (1 / n + 1 / m))
    reach = float(t.ppf(1 - alpha, freedom)) * error
    return reach, reach + float(t.ppf(POWER, freedom)) * error


def _reach_of_changes(changes: Sequence[float], alpha: float) -> tuple[float | None, float | None]:
    """The same for seeds that are each held to one base: the spread is that of their changes."""
    from scipy.stats import t

    if (n := len(changes)) < 2:
        return None, None
    mean = math.fsum(changes) / n
    variance = max(math.fsum((v - mean) ** 2 for v in changes) / (n - 1), smallest_step(changes) ** 2 / 4)
    error = math.sqrt(variance / n)
    reach = float(t.ppf(1 - alpha, n - 1)) * error
    return reach, reach + float(t.ppf(POWER, n - 1)) * error


def _outcome(gain: float, reach: float | None, tolerance: float) -> Outcome:
    """From a gain (higher is better), the half-width of its interval, and the loss that does not matter."""
    if reach is None:
        return Outcome.INCONCLUSIVE
    if gain + reach < 0:
        return Outcome.REGRESSED if gain < -tolerance else Outcome.SAME
    if gain - reach > 0 and gain > tolerance:
        return Outcome.IMPROVED
    return Outcome.SAME if gain - reach >= -tolerance else Outcome.INCONCLUSIVE
