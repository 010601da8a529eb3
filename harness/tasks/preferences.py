"""The user's own preference file: JSON Lines, JSON, Parquet or CSV, paired or not, text or conversations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt, Le, Lt

from harness.tasks.base import TaskData, Text
from harness.tasks.curating.applying import Curated, with_columns
from harness.tasks.reading.annotators import with_annotations
from harness.tasks.reading.checking import Checked, check
from harness.tasks.reading.files import fingerprint_of, read_table
from harness.tasks.reading.formats import recognised
from harness.tasks.reading.rows import Column, layout_of, pair, unescaped, unpaired
from harness.tasks.reading.splits import Overlap, assemble


@dataclass(frozen=True)
class Preferences(Curated):
    """Preference data from a file, split by prompt into training, validation and test.

    Columns are ``chosen`` and ``rejected`` (with ``prompt``, or with the prompt as their common beginning),
    or ``prompt``, ``completion`` and ``label``. Each is text or a list of ``{"role", "content"}`` messages;
    in CSV, TSV and Parquet the list may be JSON text.

    Attributes:
        path: the file, by suffix: .jsonl, .ndjson, .json, .parquet, .csv or .tsv.
        eval_path: a held-out file; null holds prompts of ``path`` out.
        seed: governs the split.
        held_out: share of the prompts held out where ``eval_path`` is null. One half of them is for
            validation, one for test; ``eval_path`` is halved in the same way.
        columns: our column -> the file's, where the names differ.
        prompt_end: where a text prompt shared by chosen and rejected ends (the last such marker); null takes
            their longest common beginning, as TRL does.
        overlap: ``error`` refuses, ``drop`` leaves out training rows whose prompt is in ``eval_path``.
        allow_skipped: share of the rows that may be unusable (empty, chosen equal to rejected).
        max_rows: read only so many rows, from the top of each file.
        annotators: columns that hold the label each of several people gave; their agreement stands in the data card.
    """

    shape_rows: ClassVar[frozenset[str]] = Curated.shape_rows | {
        "path", "eval_path", "seed", "held_out", "columns", "prompt_end", "overlap", "allow_skipped", "max_rows",
        "annotators",
    }  # fmt: skip

    path: str
    eval_path: str | None = None
    seed: Annotated[int, Ge(0)] = 0
    held_out: Annotated[float, Gt(0), Lt(1)] = 0.1
    columns: dict[Column, str] = field(default_factory=dict)
    prompt_end: str | None = None
    overlap: Overlap = "error"
    allow_skipped: Annotated[float, Ge(0), Le(1)] = 0.05
    max_rows: Annotated[int, Gt(0)] | None = None
    annotators: tuple[str, ...] = ()

    def load(self) -> TaskData:
        """Read, check and split the rows."""
        return self.loaded()

    def loaded(self, among: Sequence[Text] | None = None) -> TaskData:
        """Read and check the rows, and hold out of the prompts ``among``; None: of those that the rows have."""
        train = self._checked(self.path, "task.path")
        held = None if self.eval_path is None else self._checked(self.eval_path, "task.eval_path")
        return assemble(
            train,
            held,
            share=self.held_out,
            seed=self.seed,
            overlap=self.overlap,
            eval_key="task.eval_path",
            curate=self.curate,
            among=among,
        )

    def fingerprint(self) -> str:
        """SHA-256 (16 hex digits) over the bytes of the files, without parsing them."""
        return fingerprint_of({"task.path": self.path, "task.eval_path": self.eval_path})

    def _checked(self, path: str, key: str) -> Checked:
        found = recognised(read_table(path, key=key, max_rows=self.max_rows), self.columns)
        table = found.table
        layout = layout_of(table, self.columns, prompt_end=unescaped(self.prompt_end))
        parse = partial({"preferences": pair, "unpaired": unpaired}[layout.kind], layout=layout)
        parse = with_annotations(table, self.annotators, parse)
        parse = with_columns(table, self.curate, parse, held_out=path != self.path)
        return check(
            table, layout.kind, parse, allow_skipped=self.allow_skipped, dropped=layout.dropped, notes=found.notes
        )
