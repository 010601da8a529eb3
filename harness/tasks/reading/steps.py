"""Rows of steps and their labels, from a file: what a process reward model learns from."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.base.errors import UserError
from harness.tasks.base import Row, digest_of
from harness.tasks.reading.checking import check
from harness.tasks.reading.files import fingerprint_of, read_table
from harness.tasks.reading.messages import Malformed, Undecided, is_blank
from harness.tasks.reading.rows import Layout, label_of
from harness.tasks.reading.splits import SPLITS, hold_out, loose_key

NAMES = ("steps", "completions")
"""Ours, and that of TRL's stepwise data sets."""
EXAMPLE = '{"prompt": "12+7-3=", "steps": ["19-3", "16"], "labels": [true, true]}'


@dataclass(frozen=True)
class StepRows:
    """Rows of ``prompt``, ``steps`` and ``labels``.

    Attributes:
        train: to learn from.
        held_out: by split, with prompts of their own.
    """

    train: Sequence[Row]
    held_out: Mapping[str, Sequence[Row]]

    @property
    def digest(self) -> str:
        """Of all rows, in order."""
        return digest_of([list(self.train), {k: list(v) for k, v in self.held_out.items()}])

    def away_from(self, data: Mapping[str, Sequence[Row]]) -> StepRows:
        """Without the rows to learn from whose prompts are held out by a trial, whose rows are given by split."""
        prompts = {loose_key(row["prompt"]) for rows in data.values() for row in rows}
        return StepRows([row for row in self.train if loose_key(row["prompt"]) not in prompts], self.held_out)


def read_steps(path: str, *, key: str, held_out: float, seed: int) -> StepRows:
    """The rows of a file, split by prompt; read once per process for an unchanged file.

    Args:
        path: JSON Lines, JSON or Parquet with ``prompt``, ``steps`` (or ``completions``) and ``labels``.
        key: the configuration key that names it.
        held_out: share of the prompts held out, half for validation and half for the test.
        seed: governs the split.

    Raises:
        UserError: the file cannot be read, or holds rows that are none, by their lines.
    """
    return _read(path, key, held_out, seed, fingerprint_of({key: path}))


@functools.lru_cache(maxsize=4)
def _read(path: str, key: str, held_out: float, seed: int, fingerprint: str) -> StepRows:
    table = read_table(path, key=key)
    layout = Layout("prompts", {"prompt": "prompt"}, encoded=table.encoded)
    rows = check(table, "prompts", lambda raw: step_row(raw, layout), allow_skipped=0.0, dropped=layout.dropped).rows
    prompts = [loose_key(row["prompt"]) for row in rows]
    if len(set(prompts)) < 3:
        rule = f"has {len(set(prompts))} distinct prompts; training, validation and test need one each"
        raise UserError(rule, key=key, value=path, fix="add rows with other prompts")
    held = hold_out(prompts, held_out, seed)
    parts: dict[str, list[Row]] = {name: [] for name in ("train", *SPLITS)}
    for row, prompt in zip(rows, prompts, strict=True):
        part = "validation" if prompt in held.validation else "test" if prompt in held.test else "train"
        parts[part].append(row)
    return StepRows(parts.pop("train"), parts)


def step_row(raw: Row, layout: Layout) -> Row:
    """A row in our words; a row with a step that nobody labelled decides nothing and is passed over."""
    name = next((n for n in NAMES if raw.get(n) is not None), None)
    if name is None:
        raise Malformed(f"has neither {' nor '.join(NAMES)}", fix=f"rows such as {EXAMPLE}")
    prompt, steps, labels = layout.text(raw, "prompt"), raw[name], raw.get("labels")
    if is_blank(prompt):
        raise Malformed("is empty", column="prompt")
    if not isinstance(steps, list) or not steps or not all(isinstance(s, str) and s.strip() for s in steps):
        raise Malformed("must be a list of texts, none of them blank", column=name, value=steps)
    if not isinstance(labels, list) or len(labels) != len(steps):
        raise Malformed(f"must be a list of {len(steps)} labels, one for each step", column="labels", value=labels)
    if None in labels:
        raise Undecided("a step has no label")
    return {"prompt": prompt, "steps": list(steps), "labels": [label_of(label, "labels") for label in labels]}
