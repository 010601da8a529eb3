"""The user's own file of problems whose answers can be checked: JSON Lines, JSON, Parquet or CSV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt, Le, Lt

from harness.tasks.base import Row, Score, Task, TaskData
from harness.tasks.judging.answers import Kind, scored, unanswerable
from harness.tasks.prompts import Prompts
from harness.tasks.reading.checking import Checked, check
from harness.tasks.reading.files import fingerprint_of, read_table
from harness.tasks.reading.rows import Column
from harness.tasks.reading.splits import Overlap, assemble


@dataclass(frozen=True)
class Problems(Task):
    """Prompts with answers from a file, for online algorithms; split by prompt into training, validation and test.

    Attributes:
        path: the file, by suffix: .jsonl, .ndjson, .json, .parquet, .csv or .tsv.
        eval_path: a held-out file; null holds prompts of ``path`` out.
        seed: governs the split.
        held_out: share of the prompts held out where ``eval_path`` is null. One half of them is for
            validation, one for test; ``eval_path`` is halved in the same way.
        columns: our column -> the file's, where the names differ (``prompt``).
        answer_column: the column that holds the answer.
        answer_pattern: regular expression whose first group in the answer column is the answer (last match).
        prompt_template: makes the prompt of ``{column}`` fields.
        system_prompt: makes the prompt a conversation that this system message opens.
        overlap: ``error`` refuses, ``drop`` leaves out training rows whose prompt is in ``eval_path``.
        allow_skipped: share of the rows that may be unusable.
        max_rows: read only so many rows, from the top of each file.
        length_cost: true reward lost per character.
        answers: ``number``: as GSM8K is judged; ``math``: as mathematics, by ``math-verify`` (``maths``).
    """

    has_reward: ClassVar[bool] = True
    shape_rows: ClassVar[frozenset[str]] = frozenset({
        "path", "eval_path", "seed", "held_out", "columns", "answer_column", "answer_pattern", "prompt_template",
        "system_prompt", "overlap", "allow_skipped", "max_rows",
    })  # fmt: skip

    path: str
    eval_path: str | None = None
    seed: Annotated[int, Ge(0)] = 0
    held_out: Annotated[float, Gt(0), Lt(1)] = 0.1
    columns: dict[Column, str] = field(default_factory=dict)
    answer_column: str = "answer"
    answer_pattern: str | None = None
    prompt_template: str | None = None
    system_prompt: str | None = None
    overlap: Overlap = "error"
    allow_skipped: Annotated[float, Ge(0), Le(1)] = 0.05
    max_rows: Annotated[int, Gt(0)] | None = None
    length_cost: Annotated[float, Ge(0)] = 0.0
    answers: Kind = "number"

    def __post_init__(self) -> None:
        """Check what fields demand of each other; ``ValueError`` is what ``build()`` collects."""
        self._prompts().check()

    def _prompts(self) -> Prompts:
        return Prompts(self.columns, self.answer_column, self.answer_pattern, self.prompt_template, self.system_prompt)

    def load(self) -> TaskData:
        """Read, check and split the rows."""
        unanswerable(self.answers)
        train = self._checked(self.path, "task.path")
        held = None if self.eval_path is None else self._checked(self.eval_path, "task.eval_path")
        return assemble(
            train, held, share=self.held_out, seed=self.seed, overlap=self.overlap, eval_key="task.eval_path"
        )

    def fingerprint(self) -> str:
        """SHA-256 (16 hex digits) over the bytes of the files, without parsing them."""
        return fingerprint_of({"task.path": self.path, "task.eval_path": self.eval_path})

    def score(self, row: Row, completion: str) -> Score:
        """True reward: 1 if the stated answer is the row's, 0 if not, less ``length_cost`` per character."""
        return self.scores([row], [completion])[0]

    def scores(self, rows: Sequence[Row], completions: Sequence[str]) -> list[Score]:
        """The same for many at once."""
        return scored(rows, completions, self.length_cost, self.answers)

    def _checked(self, path: str, key: str) -> Checked:
        table = read_table(path, key=key, max_rows=self.max_rows)
        return check(table, "prompts", self._prompts().parser(table), allow_skipped=self.allow_skipped)
