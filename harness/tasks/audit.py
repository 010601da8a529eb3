"""What a careful reader would ask of the data: copies, leaks of held-out rows into training, lengths, balance. Pure.

A held-out prompt has leaked where a training prompt is the same but for white space, case and Unicode form, or where
half of its runs of eight words occur in one training prompt (``tasks.copies``).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.base import formatting
from harness.tasks.base import Row, TaskData, prompt_key, text_of
from harness.tasks.reading.annotators import ANNOTATIONS, vote_of
from harness.tasks.reading.copies import copies, tight_key

FEW_PROMPTS = 30
"""Different held-out prompts below which intervals are so wide that it is said."""
COMMON, SHOWN = 0.2, 40
"""Share of held-out prompts with one answer from which it is said; characters of an answer."""
LISTED = 50
"""Leaks that the card lists."""


@dataclass(frozen=True)
class Leak:
    """A held-out prompt that training shows.

    Attributes:
        where: the held-out rows: split and kind.
        how: what the two have in common.
    """

    where: str
    how: str
    held_out: str
    training: str


@dataclass(frozen=True)
class Audit:
    """What was found.

    Attributes:
        facts: by heading, in words fit for a reader.
        leaks: every held-out prompt that leaked, once per kind of rows.
        leaked: the largest share of leaked prompts among the kinds of held-out rows.
    """

    facts: Mapping[str, str]
    leaks: Sequence[Leak]
    leaked: float


def audit(data: TaskData) -> Audit:
    """Look at all rows of a trial's data."""
    held = {
        f"{split} {kind}": sorted({text_of(row["prompt"]) for row in rows})
        for kind, splits in (("pairs", data.eval_pairs), ("prompts", data.eval_prompts))
        for split, rows in splits.items()
    }
    shown = copies({prompt for prompts in held.values() for prompt in prompts}, data.training_prompts())
    leaks = [Leak(where, *shown[prompt]) for where, prompts in held.items() for prompt in prompts if prompt in shown]
    leaked = max((sum(p in shown for p in prompts) / len(prompts) for prompts in held.values() if prompts), default=0.0)
    labelled = data.train_pairs or data.train_unpaired
    facts = {**_prompts(data), **_pairs(data.train_pairs), **_labels(data.train_unpaired), **agreements(labelled)}
    facts |= {**_answers(data), **_curation(data)}
    return Audit(facts, leaks, leaked)


def card(
    found: Audit,
    *,
    title: str,
    digest: str,
    more: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
    examples: Sequence[str] = (),
) -> str:
    """One page of markdown about the data; ``more`` are facts that need a tokenizer, ``examples`` decoded sequences."""
    rows = [[formatting.escape(k), formatting.escape(v)] for k, v in {**found.facts, **(more or {})}.items()]
    parts = [
        f"# Data of {formatting.escape(title)}",
        f"Content digest `{digest}`.",
        formatting.table(["what", "found"], rows, left=2),
    ]
    if found.leaks:
        parts.append(f"## Held-out prompts that training shows ({found.leaked:.1%} of the worst split)")
        shown = [
            [k.where, k.how, formatting.escape(k.held_out, 80), formatting.escape(k.training, 80)]
            for k in found.leaks[:LISTED]
        ]
        parts.append(formatting.table(["held-out rows", "how", "held out", "in training"], shown, left=4))
    else:
        parts.append("No held-out prompt was found in the training rows.")
    if examples:
        parts.append("## What the model sees\n\nTrained tokens stand between ⟦ and ⟧.")
        parts += [_block(example) for example in examples]
    if notes:
        parts.append("## Notes\n\n" + "\n".join(f"- {formatting.escape(n)}" for n in notes))
    return "\n\n".join(parts) + "\n"


def _block(words: str) -> str:
    """Foreign words as an indented block, in which nothing is markdown."""
    return "\n".join(f"    {line}" for line in words.splitlines())


def _prompts(data: TaskData) -> dict[str, str]:
    facts: dict[str, str] = {}
    for name, rows in (
        ("training pairs", data.train_pairs),
        ("training completions", data.train_unpaired),
        ("training prompts", data.train_prompts),
        *((f"held-out pairs, {split}", rows) for split, rows in data.eval_pairs.items()),
        *((f"held-out prompts, {split}", rows) for split, rows in data.eval_prompts.items()),
    ):
        if rows:
            distinct = {text_of(row["prompt"]) for row in rows}
            near = len(distinct) - len({tight_key(p) for p in distinct})
            facts[name] = f"{len(rows):,}, of {len(distinct):,} different prompts" + (
                f", {near:,} of them copies but for spacing and case" if near else ""
            )
    return facts


def _pairs(rows: Sequence[Row]) -> dict[str, str]:
    if not rows:
        return {}
    sides = [tuple(text_of(row[side]) for side in ("prompt", "chosen", "rejected")) for row in rows]
    n, counted = len(sides), Counter(sides)
    longer = sum((len(c) > len(r)) + 0.5 * (len(c) == len(r)) for _, c, r in sides) / n
    both_ways = sum(1 for p, c, r in counted if c != r and (p, r, c) in counted) // 2
    return {
        "chosen is longer": f"{longer:.1%} of pairs (ties count one half)",
        "mean length, chosen / rejected": f"{sum(len(c) for _, c, _ in sides) / n:.1f} / "
        f"{sum(len(r) for *_, r in sides) / n:.1f} characters",
        "pairs whose sides are identical": _share(sum(c == r for _, c, r in sides), n),
        "pairs that occur more than once": _share(n - len(counted), n),
        "preferences that occur both ways": f"{both_ways:,}",
    }


def _curation(data: TaskData) -> dict[str, str]:
    """What each rule of ``task.curate`` did, of the rows that there were before the first."""
    rows = data.train_pairs or data.train_unpaired or data.train_prompts
    total = len(rows) + sum(n for name, n in data.curation.items() if name.startswith("removed"))
    return {name.replace("_", " ", 2): _share(n, total) for name, n in data.curation.items()}


def _labels(rows: Sequence[Row]) -> dict[str, str]:
    if not rows:
        return {}
    return {"desirable completions": _share(sum(bool(row["label"]) for row in rows), len(rows))}


def agreements(rows: Sequence[Row]) -> dict[str, str]:
    """Cohen's kappa of every two annotators, over the rows that both labelled."""
    labels = [{name: vote_of(v) for name, v in row[ANNOTATIONS].items()} for row in rows if ANNOTATIONS in row]
    if not labels:
        return {}
    from harness.base.calibration import cohens_kappa

    facts = {}
    for first, second in itertools.combinations(labels[0], 2):
        both = [(a, b) for row in labels if (a := row[first]) is not None and (b := row[second]) is not None]
        kappa = cohens_kappa(*map(list, zip(*both, strict=True))) if both else None
        silent = [name for name in (first, second) if all(row[name] is None for row in labels)]
        facts[f"agreement of {first} and {second}"] = (
            "no row has labels of both" + (f" ({' and '.join(silent)} gave none)" if silent else "")
            if not both
            else f"{'always, and by chance too' if kappa is None else f'Cohen κ {kappa:.2f}'} over {len(both):,} rows"
        )
    return facts


def _answers(data: TaskData) -> dict[str, str]:
    """What a policy that always says the same would be right for, where rows know their answers."""
    found = {split: _commonest(rows) for split, rows in data.eval_prompts.items()}
    return {
        f"commonest answer, {split}": f"{formatting.printable(answer, SHOWN)!r}, {_share(count, n)}"
        for split, (answer, count, n) in found.items()
        if count > 1
    }


def _commonest(rows: Sequence[Row]) -> tuple[str, int, int]:
    """The answer that most rows have, how many have it, and of how many."""
    answers = Counter(str(row["answer"]) for row in rows if row.get("answer") is not None)
    answer, count = answers.most_common(1)[0] if answers else ("", 0)
    return answer, count, sum(answers.values())


def one_answer(data: TaskData, split: str) -> list[str]:
    """A line where one answer is right for so many held-out prompts that training by reward will find it."""
    answer, count, n = _commonest(data.eval_prompts.get(split) or ())
    if n < FEW_PROMPTS or count < COMMON * n:
        return []
    shown = formatting.printable(answer, SHOWN)
    return [
        f"{count / n:.0%} of the {n:,} held-out prompts have one answer, {shown!r}: a policy that says nothing else is "
        "right as often, and training by a reward finds that first"
    ]


def _share(count: int, n: int) -> str:
    return f"{count:,} ({count / n:.1%})"


def few_prompts(data: TaskData, split: str) -> list[str]:
    """A line for each kind of held-out row that comes from fewer than ``FEW_PROMPTS`` different prompts."""
    found: dict[str, list[str]] = {}
    for kind, rows in (("pairs", data.eval_pairs.get(split) or ()), ("prompts", data.eval_prompts.get(split) or ())):
        distinct = len({prompt_key(row["prompt"]) for row in rows})
        if not 0 < distinct < FEW_PROMPTS:
            continue
        why = " (a limit of rows on a file that is sorted by prompt leaves few)" if distinct < len(rows) else ""
        told = (
            f"the {{}} have {distinct} different prompts, and prompts are what intervals count: they will be wide"
            if distinct > 1
            else "there is one prompt only (held out: {}), and prompts are what intervals count: there will be none"
        )
        each = f"{len(rows):,} held-out {kind}" if distinct > 1 else f"{kind.removesuffix('s')} rows: {len(rows):,}"
        found.setdefault(told + why, []).append(each)
    fix = "(fix: a larger task.held_out, or held-out data of their own)"
    return [f"{told.format(_listed(told, rows))} {fix}" for told, rows in found.items()]


def _listed(told: str, rows: Sequence[str]) -> str:
    return (", " if told.startswith("there") else " and the ").join(rows)
