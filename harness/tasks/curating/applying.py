"""The rules of ``task.curate``, applied in their order to the training rows, with a count for each. Torch-free.

Held-out rows stay as they are: trials that differ in curation are judged by the same rows, and a rule that removes what
is hard or noisy from them would flatter every one. A rule that says so (``everywhere``) is the exception.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from harness.base.errors import UserError
from harness.base.records import UNLESS_DEFAULT
from harness.tasks.base import Row, Task, TaskData, prompt_key
from harness.tasks.curating.base import BESIDE, MarginRule, RowRule, Rule, Sifted, columns_beside

if TYPE_CHECKING:
    from harness.tasks.reading.rows import Kind, Table

KEY = "task.curate"
Rules = Mapping[str, Rule | None]


@dataclass(frozen=True)
class Curated(Task):
    """A task whose training rows may be curated.

    Attributes:
        curate: rules by name (``conf/curate/``); null leaves one out.
    """

    shape_rows: ClassVar[frozenset[str]] = frozenset({"curate"})

    curate: dict[str, Rule | None] = field(default_factory=dict, kw_only=True, metadata=UNLESS_DEFAULT)

    def __post_init__(self) -> None:
        """A rule that is left out is no part of the task."""
        object.__setattr__(self, "curate", {name: rule for name, rule in self.curate.items() if rule is not None})

    def base_recipe(self) -> dict[str, Any]:
        """Without curation where there is none."""
        return {name: value for name, value in super().base_recipe().items() if name != "curate" or value}


@dataclass(frozen=True)
class Left:
    """Rows after curation.

    Attributes:
        rows: without what only rules read.
        notes: a line for each rule.
        counts: ``removed_by_<rule>`` and ``changed_by_<rule>`` -> rows.
    """

    rows: list[Row]
    notes: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


def rules_of(task: Task, kind: type[Rule] = Rule) -> dict[str, Any]:
    """The rules of a task, of one kind, in the order in which they are applied."""
    return _in_order(getattr(task, "curate", {}), kind)


def uncurated(task: Task) -> Task:
    """The task with all of its rows: what its own code is, and what judges completions by its rules."""
    return replace(task, curate={}) if isinstance(task, Curated) and task.curate else task


def _in_order(rules: Rules, kind: type[Rule]) -> dict[str, Any]:
    chosen = {name: rule for name, rule in rules.items() if isinstance(rule, kind)}
    return dict(sorted(chosen.items(), key=lambda item: (item[1].place, item[0])))


def with_columns(table: Table, rules: Rules, parse: Callable[[Row], Row], *, held_out: bool = False) -> Any:
    """``parse`` that also keeps the columns that rules read.

    Args:
        table: rows as they were read.
        rules: by name.
        parse: one row, in our columns.
        held_out: whether the rows are held-out ones of their own, which may lack the columns.

    Raises:
        UserError: a rule needs a column that is not there.
    """
    wanted: dict[str, None] = {}
    for name, rule in _in_order(rules, Rule).items() if not held_out else ():
        wanted |= dict.fromkeys(_needed(name, rule, table.columns))
    if not wanted:
        return parse
    return lambda raw: {**parse(raw), BESIDE: {column: raw.get(column) for column in wanted}}


def _needed(name: str, rule: Rule, found: Sequence[str]) -> Sequence[str]:
    """The columns that a rule reads; refused where they are not there."""
    asked = _asked(name, lambda: rule.columns(found))
    if absent := [column for column in asked if column not in found]:
        raise UserError(
            f"reads a column that is not there: {', '.join(absent)}; found: {', '.join(found) or 'none'}",
            key=f"{KEY}.{name}",
            value=type(rule).__name__,
            fix=f"name columns of the data, or leave the rule out: {KEY}.{name}=null",
        )
    return asked


def columns_read(rules: Rules, found: Sequence[str]) -> set[str]:
    """Columns of a table that rules read; nothing is said of those that lack theirs."""
    read: set[str] = set()
    for rule in _in_order(rules, Rule).values():
        try:
            read |= set(rule.columns(found))
        except UserError:
            continue  # said by ``with_columns``
    return read


def sifted(rows: Sequence[Row], rules: Rules, *, kind: Kind = "preferences") -> Left:
    """Training rows after all rules that look at rows alone.

    Args:
        rows: to train on.
        rules: by name.
        kind: what the rows are.

    Raises:
        UserError: a rule does not go with these rows, or leaves too few.
    """
    left, total = Left(list(rows)), len(rows)
    for name, rule in _in_order(rules, Rule).items():
        if rule.pairs_only and kind != "preferences":
            raise UserError(
                f"compares chosen with rejected, and these rows are {kind}",
                key=f"{KEY}.{name}",
                value=type(rule).__name__,
                fix=f"leave it out: {KEY}.{name}=null",
            )
        if isinstance(rule, RowRule):
            _needed(name, rule, columns_beside(left.rows))  # rows that were made have none
            found = _asked(name, lambda rule=rule, rows=left.rows: rule.sift(rows))
            left = counted(left, name, rule, found, total)
        else:
            left.notes.append(f"{name} is applied in the trial, once its base has scored the training rows")
    return replace(left, rows=without_beside(left.rows))


def counted(left: Left, name: str, rule: Rule, found: Sifted, total: int) -> Left:
    """What is left after a rule, with its counts.

    Args:
        left: before it.
        name: of the rule.
        rule: itself.
        found: what it gave.
        total: rows before the first rule.

    Raises:
        UserError: it gave no ``Sifted``, or leaves too few rows.
    """
    before, gone = len(left.rows), sum(found.removed.values()) if isinstance(found, Sifted) else 0
    if not isinstance(found, Sifted) or len(found.rows) + gone != before:
        words = "must give a Sifted whose rows and counts of removed ones come to the rows that it was given"
        fix = "from harness.tasks.curating.base import split_by: it counts"
        raise UserError(words, key=f"{KEY}.{name}", value=type(rule).__qualname__, fix=fix)
    counts = {**left.counts, f"removed_by_{name}": gone}
    if found.changed_rows:
        counts[f"changed_by_{name}"] = found.changed_rows
    if len(found.rows) < rule.least:
        told = ", ".join(f"{what.replace('_', ' ', 2)}: {n:,}" for what, n in counts.items())
        raise UserError(
            f"{len(found.rows):,} of {total:,} training rows are left ({told}), fewer than {KEY}.{name}.least",
            key=f"{KEY}.{name}.least",
            value=rule.least,
            fix=f"a milder setting, or {KEY}.{name}=null"
            + (f", or {KEY}.{name}.least={len(found.rows)}" if found.rows else ""),
        )
    return Left(list(found.rows), [*left.notes, _note(name, found, before)], counts)


def held_sifted(parts: Mapping[str, Sequence[Row]], rules: Rules) -> tuple[dict[str, list[Row]], list[str]]:
    """Held-out rows by split, after the rules that are told to look at them too, and a line for each.

    Raises:
        UserError: a rule leaves none of a split.
    """
    held, notes = {split: list(rows) for split, rows in parts.items()}, []
    for name, rule in _in_order(rules, RowRule).items():
        if not rule.everywhere:
            continue
        for split, rows in held.items():
            found = _asked(name, lambda rule=rule, rows=rows: rule.sift(rows))
            if rows and not found.rows:
                words = f"leaves none of {len(rows):,} held-out rows of the {split} split"
                raise UserError(words, key=f"{KEY}.{name}", value=type(rule).__name__, fix=f"{KEY}.{name}=null")
            notes.append(_note(name, found, len(rows), f"held-out rows ({split})"))
            held[split] = list(found.rows)
    return {split: without_beside(rows) for split, rows in held.items()}, notes


def without_beside(rows: Sequence[Row]) -> list[Row]:
    """Rows as trials know them."""
    return [{k: v for k, v in row.items() if k != BESIDE} if BESIDE in row else row for row in rows]


def by_margin(data: TaskData, rules: Rules, margins: Sequence[float]) -> TaskData:
    """The rows of a trial after the rules that need the base's margins of its training pairs.

    A training prompt of which no pair is left is left out too.

    Raises:
        UserError: a rule leaves too few rows.
    """
    left, total = Left(list(data.train_pairs)), len(data.train_pairs)
    margin = dict(zip(map(_sides, left.rows), margins, strict=True))
    for name, rule in _in_order(rules, MarginRule).items():
        scores = [margin[_sides(row)] for row in left.rows]
        found = _asked(name, lambda rule=rule, rows=left.rows, scores=scores: rule.sift_by(rows, scores))
        left = counted(left, name, rule, found, total)
    stay = {prompt_key(row["prompt"]) for row in left.rows}
    gone = {prompt_key(row["prompt"]) for row in data.train_pairs} - stay
    prompts = [row for row in data.train_prompts if prompt_key(row["prompt"]) not in gone]
    notes, counts = [*data.notes, *left.notes], {**data.curation, **left.counts}
    return replace(data, train_pairs=left.rows, train_prompts=prompts, notes=notes, curation=counts)


def _sides(row: Row) -> tuple[str, ...]:
    """What the base's margin of a pair depends on."""
    return tuple(prompt_key(row[name]) for name in ("prompt", "chosen", "rejected"))


def _note(name: str, found: Sifted, before: int, what: str = "training rows") -> str:
    """What a rule did, in a line."""
    told = [f"{n:,}: {why}" for why, n in found.removed.items()]
    parts = [
        f"{sum(found.removed.values()):,} of {before:,} {what} removed" + (f" ({'; '.join(told)})" if told else "")
    ]
    if found.changed_rows:
        parts.append(f"{found.changed_rows:,} changed ({'; '.join(f'{n:,}: {w}' for w, n in found.changed.items())})")
    if found.kept_blind:
        parts.append(f"{found.kept_blind:,} lack what it reads, and stay")
    return f"curation, {name}: {', '.join(parts)}"


def _asked(name: str, ask: Callable[[], Any]) -> Any:
    """What a rule says; its complaints under the key that the user knows."""
    try:
        return ask()
    except UserError as error:
        key = f"{KEY}.{name}" + (f".{error.key}" if error.key else "")
        raise UserError(error.rule, key=key, value=error.value, fix=error.fix) from None
