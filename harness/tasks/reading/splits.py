"""From checked rows to a trial's data: held-out prompts, disjoint from training. Pure functions, no I/O."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

from harness.base.errors import UserError
from harness.tasks.base import Row, TaskData, Text, prompt_key, text_of
from harness.tasks.curating.applying import Rules, held_sifted, sifted
from harness.tasks.reading.checking import Checked
from harness.tasks.reading.copies import showing
from harness.tasks.reading.families import RUN, Families, families
from harness.tasks.reading.kept import kept

Overlap = Literal["error", "drop"]
SPLITS = ("validation", "test")


@dataclass(frozen=True)
class Held:
    """Identities (``loose_key``) of the held-out prompts; all others are for training."""

    validation: frozenset[str]
    test: frozenset[str]


def loose_key(prompt: Text) -> str:
    """A prompt's identity, white space and case ignored: a copy that differs only there would still leak."""
    if isinstance(prompt, str):
        return " ".join(prompt.split()).casefold()
    return "\n".join(f"{m['role']}: {loose_key(m['content'])}" for m in prompt)


def hold_out(keys: Iterable[str], share: float, seed: int, family: Mapping[str, int] | None = None) -> Held:
    """Hold out ``share`` of the distinct prompts, half for validation and half for the test, families whole.

    The choice depends on the seed and on the prompts' content alone, not on the order of the rows. There are
    at least one prompt per split and, where ``share`` is below 1, one prompt left to train on; of a single
    prompt all goes to the test.

    Args:
        keys: identities of the prompts.
        share: to hold out.
        seed: governs the choice.
        family: number of each prompt's family; None: each is one of its own.
    """
    distinct = sorted(set(keys), key=lambda key: hashlib.sha256(f"{seed}\n{key}".encode()).digest())
    groups: dict[int, list[str]] = {}
    for place, key in enumerate(distinct):
        groups.setdefault(place if family is None else family[key], []).append(key)
    ranked, wanted = list(groups.values()), len(distinct)
    if share < 1:
        if len(ranked) < 3:
            alone = f"{len(distinct)} distinct prompts" + (
                f" in {len(ranked)} families" if len(ranked) < len(distinct) else ""
            )
            raise UserError(
                f"{alone} cannot be split: training, validation, test need one each",
                key="task.held_out",
                value=share,
                fix="add rows with other prompts, or name a held-out file or split of their own",
            )
        wanted = min(len(distinct) - 1, max(2, round(len(distinct) * share)))
    validation, rest = _taken(ranked, wanted // 2, spare=2 if share < 1 else 1)
    test, _ = _taken(rest, wanted - wanted // 2, spare=1 if share < 1 else 0)
    return Held(frozenset(validation), frozenset(test))


def _taken(groups: Sequence[list[str]], wanted: int, *, spare: int) -> tuple[list[str], list[list[str]]]:
    """The first groups whose members come to ``wanted``, and the others, of which ``spare`` must be left.

    A group that would go beyond it is passed over, unless nothing has been taken.
    """
    taken: list[str] = []
    left = list(groups)
    for group in groups:
        if len(taken) >= wanted or len(left) <= spare:
            break
        if not taken or len(taken) + len(group) <= wanted:
            taken += group
            left.remove(group)
    return taken, left


def assemble(
    train: Checked,
    held: Checked | None,
    *,
    share: float,
    seed: int,
    overlap: Overlap = "error",
    eval_key: str,
    curate: Rules | None = None,
    among: Sequence[Text] | None = None,
) -> TaskData:
    """All rows a trial may touch.

    Args:
        train: rows to train on, and to hold prompts out of where ``held`` is null.
        held: held-out rows of their own, all of them split into validation and test.
        share: share of the prompts of ``train`` held out, where ``held`` is null.
        seed: governs the split.
        overlap: what to do with training rows whose prompt is held out.
        eval_key: the configuration key that names the held-out rows (``task.eval_path``).
        curate: rules for what is left to train on.
        among: prompts of which to hold some out, where ``train`` may lack rows of some that it has at other times.

    Raises:
        UserError: too few prompts, prompts on both sides, or a split of ``among`` for which there is no row.
    """
    rules = curate or {}
    notes = [*train.notes, *(held.notes if held else ())]
    if held is None:
        prompts = {loose_key(p): p for p in among or [row["prompt"] for row in train.rows]}
        asked = list(prompts.values())
        found = Families(**kept("families", [asked], lambda: asdict(families(asked))))
        split = hold_out(prompts, share, seed, dict(zip(prompts, found.of, strict=True)))
        source, rest = train, _outside(train.rows, split)
        notes += _on_families(found, len(prompts))
    else:
        if held.conversational != train.conversational:
            raise UserError(
                f"{held.name} and {train.name} must both hold conversations or both plain text",
                key=eval_key,
                value=held.name,
                fix="write both in one format",
            )
        split = hold_out((loose_key(row["prompt"]) for row in held.rows), 1.0, seed)
        source, rest = held, _outside(train.rows, split)
        if len(rest) < len(train.rows):
            notes.append(_overlap(train, held, split, len(rest), overlap, eval_key))
        if not split.validation:
            notes.append(f"{held.name}: a single prompt, all of it in the test split; validation is empty")
    if held is None or overlap == "drop":
        rest, told = _without_copies(rest, source, split)
        notes += told
    left = sifted(rest, rules, kind=train.kind)
    parts, on_held = held_sifted(
        {
            name: [row for row in source.rows if loose_key(row["prompt"]) in keys]
            for name, keys in zip(SPLITS, (split.validation, split.test), strict=True)
        },
        rules,
    )
    if among is not None and held is None:
        notes.append(_with_rows(parts, split, share))
    rest, notes = left.rows, [*notes, *left.notes, *on_held]
    if on_held:
        parts, rest, told = _apart_again(parts, rest, source)
        notes += told
    eval_pairs = {name: _pairs(source, rows) for name, rows in parts.items()}
    if source.kind == "unpaired":
        notes.append(_note_on_pairs(parts, eval_pairs))
    return TaskData(
        train_pairs=rest if train.kind == "preferences" else (),
        train_unpaired=rest if train.kind == "unpaired" else (),
        train_prompts=_prompts(rest),
        eval_pairs=eval_pairs,
        eval_prompts={name: _prompts(rows) for name, rows in parts.items()},
        notes=notes,
        curation=left.counts,
    )


def _with_rows(parts: Mapping[str, Sequence[Row]], split: Held, share: float) -> str:
    """How many of the prompts that were held out have a row to be judged by; raises if those of a split have none."""
    there = {name: len({loose_key(row["prompt"]) for row in rows}) for name, rows in parts.items()}
    chosen = {name: len(getattr(split, name)) for name in SPLITS}
    for name in SPLITS:
        if chosen[name] and not there[name]:
            fix = (
                "hold out more of them (task.held_out=0.5), give more prompts, or see what was left of the rows and why"
            )
            rule = f"none of the {chosen[name]:,} prompts that are held out for {name} has a row"
            raise UserError(rule, key="task.held_out", value=share, fix=fix)
    return f"{sum(there.values()):,} of {sum(chosen.values()):,} held-out prompts have rows"


def _outside(rows: Sequence[Row], split: Held) -> list[Row]:
    held = split.validation | split.test
    return [row for row in rows if loose_key(row["prompt"]) not in held]


def _on_families(found: Families, count: int) -> list[str]:
    """How the prompts belong together, where they do."""
    notes = []
    if found.largest > 1:
        grouped = len(set(found.of))
        notes.append(
            f"{count:,} prompts are {grouped:,} families that share a beginning or {RUN} words on end, and are held "
            f"out whole; the largest has {found.largest:,} ({found.largest / count:.1%})"
        )
    for size in found.cut:
        notes.append(
            f"a family of {size:,} prompts ({size / count:.1%}) was taken apart, since it is too large to hold out"
        )
    return notes


def _without_copies(rest: Sequence[Row], source: Checked, split: Held) -> tuple[list[Row], list[str]]:
    """The training rows without those whose prompt shows a held-out one, and how many they were."""
    held = sorted(
        {text_of(r["prompt"]) for r in source.rows if loose_key(r["prompt"]) in split.validation | split.test}
    )
    asked = [text_of(row["prompt"]) for row in rest]
    shown = set(kept("copies", [held, asked], lambda: {"shown": sorted(showing(held, asked))})["shown"])
    if not shown:
        return list(rest), []
    left = [row for i, row in enumerate(rest) if i not in shown]
    if not left:
        return list(rest), []  # the check for leaks says it
    return left, [f"{len(shown):,} of {len(rest):,} training rows left out: their prompts show held-out ones"]


def _apart_again(
    parts: Mapping[str, list[Row]], rest: list[Row], source: Checked
) -> tuple[dict[str, list[Row]], list[Row], list[str]]:
    """Splits whose held-out rows were changed after they were split: what has become alike is in one of them alone."""
    validation, test = (frozenset(loose_key(row["prompt"]) for row in parts[name]) for name in SPLITS)
    apart = {**parts, SPLITS[0]: [row for row in parts[SPLITS[0]] if loose_key(row["prompt"]) not in test]}
    changed = replace(source, rows=[row for rows in apart.values() for row in rows])
    rest, told = _without_copies(rest, changed, Held(validation - test, test))
    return apart, rest, told


def _overlap(train: Checked, held: Checked, split: Held, left: int, overlap: Overlap, eval_key: str) -> str:
    """The note on training rows dropped; a ``UserError`` where that was not asked for or leaves none."""
    both = {
        loose_key(row["prompt"]): row["prompt"]
        for row in train.rows
        if loose_key(row["prompt"]) in split.validation | split.test
    }
    prompt = next(iter(both.values()))
    example = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    example = example if len(example) <= 80 else example[:79] + "…"
    said = f"{len(both)} prompts are both in {train.name} and held out in {held.name}, such as {example!r}"
    if overlap == "error" or not left:
        raise UserError(
            f"{said}; numbers on prompts that were trained on mean little"
            + ("" if left else ", and no other prompt is left to train on"),
            key=eval_key,
            value=held.name,
            fix="remove them from one of the two" + (", or task.overlap=drop (from training)" if left else ""),
        )
    return f"{said}: {len(train.rows) - left} training rows dropped"


SCORED = ("prompt", "answer", "tests", "entry_point", "start")
"""Columns of a prompt, and what tasks judge a completion by."""


def _prompts(rows: Iterable[Row]) -> list[Row]:
    """Distinct prompts in order, each with what ``Task.score`` reads (the first row's)."""
    distinct: dict[str, Row] = {}
    for row in rows:
        kept = {key: row[key] for key in SCORED if key in row}
        distinct.setdefault(prompt_key(row["prompt"]), kept)
    return list(distinct.values())


def _pairs(source: Checked, rows: Sequence[Row]) -> list[Row]:
    """Preference pairs of held-out rows; unpaired rows give those whose prompt has both labels."""
    if source.kind == "preferences":
        return list(rows)
    if source.kind == "prompts":
        return []
    by_prompt: dict[str, dict[bool, list[Row]]] = {}
    for row in rows:
        by_prompt.setdefault(prompt_key(row["prompt"]), {True: [], False: []})[row["label"]].append(row)
    return [
        {"prompt": good["prompt"], "chosen": good["completion"], "rejected": bad["completion"]}
        for labels in by_prompt.values()
        for good, bad in zip(labels[True], labels[False], strict=False)
        if good["completion"] != bad["completion"]
    ]


def _note_on_pairs(parts: Mapping[str, Sequence[Row]], pairs: Mapping[str, Sequence[Row]]) -> str:
    prompts = sum(len({prompt_key(row["prompt"]) for row in rows}) for rows in parts.values())
    paired = {prompt_key(row["prompt"]) for rows in pairs.values() for row in rows}
    if not paired:
        return (
            f"none of the {prompts} held-out prompts has both a desirable and an undesirable completion:"
            " no preference accuracy"
        )
    return f"{len(paired)} of {prompts} held-out prompts have completions of both labels, and give pairs"
