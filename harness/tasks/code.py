"""Programs that tests judge: HumanEval's and MBPP's files, or one's own. What a model writes runs in a sandbox."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt, Le, Lt

from harness.sandbox import jail
from harness.sandbox.exam import Hall, Paper
from harness.tasks.base import Row, Score, Task, TaskData, prompt_key
from harness.tasks.reading.checking import Checked, check
from harness.tasks.reading.files import fingerprint_of, read_table
from harness.tasks.reading.messages import EMPTY_PROMPT, Malformed, Skip
from harness.tasks.reading.rows import unescaped
from harness.tasks.reading.splits import Overlap, assemble

FENCED = re.compile(r"```[ \t]*(?:python3?|py)?[ \t]*\r?\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL | re.IGNORECASE)
BESIDE = re.compile(r"\n(?=[^\s#@)\]}])")
"""Where something begins in the first column: a function that was to be continued has ended before it."""
PROMPTS, TESTS = ("prompt", "text", "question", "problem", "instruction"), ("tests", "test", "test_list")
SETUPS = ("setup", "test_setup_code", "test_imports")
ASKS = "{text}\n\nYour code should pass these tests:\n\n{tests}\n"


@dataclass(frozen=True)
class Code(Task):
    """Programming problems with tests from a file; the true reward is 1 where all tests of a row hold.

    A row has a prompt and tests: assertions, or a function ``check(candidate)`` with the name of what it checks in
    ``entry_point``. A prompt that is the beginning of a program (HumanEval's) may be continued, or the program be
    written anew; of a reply with fenced code the code counts.

    Attributes:
        path: the file, by suffix: .jsonl, .ndjson, .json, .parquet, .csv or .tsv.
        eval_path: a held-out file; null holds prompts of ``path`` out.
        seed: governs the split.
        held_out: share of the prompts held out where ``eval_path`` is null.
        prompt_template: what is asked, of ``{prompt}`` and ``{tests}``; null asks the prompt itself, and shows the
            tests of a row that names no entry point (as MBPP's), which nobody could guess the names of.
        system_prompt: makes the prompt a conversation that this system message opens.
        overlap: ``error`` refuses, ``drop`` leaves out training rows whose prompt is in ``eval_path``.
        allow_skipped: share of the rows that may be unusable.
        max_rows: read only so many rows, from the top of each file.
        sandbox: ``bubblewrap``; ``none`` runs what a model writes with your own rights.
        timeout_s: seconds that a program may take, its tests included.
        memory_mb: that a program may hold.
        workers: programs judged at once; 0: as many as there are cores.
    """

    has_reward: ClassVar[bool] = True
    shape_rows: ClassVar[frozenset[str]] = frozenset({
        "path", "eval_path", "seed", "held_out", "prompt_template", "system_prompt", "overlap", "allow_skipped",
        "max_rows", "workers",
    })  # fmt: skip

    path: str
    eval_path: str | None = None
    seed: Annotated[int, Ge(0)] = 0
    held_out: Annotated[float, Gt(0), Lt(1)] = 0.1
    prompt_template: str | None = None
    system_prompt: str | None = None
    overlap: Overlap = "error"
    allow_skipped: Annotated[float, Ge(0), Le(1)] = 0.05
    max_rows: Annotated[int, Gt(0)] | None = None
    sandbox: jail.Kind = "bubblewrap"
    timeout_s: Annotated[float, Gt(0)] = 5.0
    memory_mb: Annotated[int, Ge(64)] = 512
    workers: Annotated[int, Ge(0)] = 0

    def load(self) -> TaskData:
        """Read, check and split the rows; refuses a machine on which no sandbox can be had."""
        if (found := jail.problem(self.sandbox)) is not None:
            raise found
        train = self._checked(self.path, "task.path")
        held = None if self.eval_path is None else self._checked(self.eval_path, "task.eval_path")
        return assemble(
            train, held, share=self.held_out, seed=self.seed, overlap=self.overlap, eval_key="task.eval_path"
        )

    def all_rows(self, keys: str) -> list[Row]:
        """Every problem of ``path``, each once, none held out; ``keys`` are the settings' own (``eval.…NAME``)."""
        if (found := jail.problem(self.sandbox, f"{keys}.sandbox")) is not None:
            raise found
        return list({prompt_key(row["prompt"]): row for row in self._checked(self.path, f"{keys}.path").rows}.values())

    def fingerprint(self) -> str:
        """SHA-256 (16 hex digits) over the bytes of the files, without parsing them."""
        return fingerprint_of({"task.path": self.path, "task.eval_path": self.eval_path})

    def score(self, row: Row, completion: str) -> Score:
        """1 where all tests of the row hold."""
        return self.scores([row], [completion])[0]

    def scores(self, rows: Sequence[Row], completions: Sequence[str]) -> list[Score]:
        """The same, several programs at once; one that was written twice for a row is run once."""
        papers = [paper_of(row, text) for row, text in zip(rows, completions, strict=True)]
        hall = Hall(self.sandbox, self.timeout_s, self.memory_mb, self.workers)
        return [Score(float(found.passed), found.passed) for found in hall.examine(papers)]

    def _checked(self, path: str, key: str) -> Checked:
        table = read_table(path, key=key, max_rows=self.max_rows)
        return check(table, "prompts", self._row, allow_skipped=self.allow_skipped)

    def _row(self, raw: Row) -> Row:
        """Prompt, tests and what a program begins with, under our names."""
        shown, asked = _text(raw, PROMPTS), _tests(raw)
        setup, entry = _lines(raw, SETUPS), raw.get("entry_point") or None
        if entry is not None and not (isinstance(entry, str) and entry.isidentifier()):
            raise Malformed("must be the name of a function", column="entry_point", value=entry)
        begun = entry is not None and re.search(rf"^\s*(?:async\s+)?def\s+{entry}\b", shown, re.MULTILINE) is not None
        template = self.prompt_template
        if template is not None:
            prompt: Any = str(unescaped(template)).replace("{prompt}", shown).replace("{tests}", asked)
        else:
            prompt = shown if entry is not None else ASKS.format(text=shown.strip(), tests=asked)
        if self.system_prompt is not None:
            system = {"role": "system", "content": str(unescaped(self.system_prompt))}
            prompt = [system, {"role": "user", "content": prompt}]
        return {
            "prompt": prompt,
            "tests": f"{setup}\n{asked}" if setup else asked,
            "entry_point": entry,
            "start": shown if begun else "",
        }


def paper_of(row: Row, completion: str) -> Paper:
    """What is examined of a reply to a row; ``entry_point`` and ``start`` may be left out."""
    start, entry = str(row.get("start") or ""), row.get("entry_point") or None
    return Paper(program_of(completion, start=start, entry=entry), row["tests"], entry)


def program_of(completion: str, *, start: str, entry: str | None) -> str:
    """The program that a reply holds.

    Args:
        completion: with or without fenced code and words around it.
        start: what the program began with; empty where it is written from nothing.
        entry: the function that is asked for.
    """
    blocks = [block for block in FENCED.findall(completion) if block.strip()]
    defines = re.compile(rf"^(?:async\s+)?def\s+{re.escape(entry)}\b" if entry else r"^(?:def|class)\s", re.MULTILINE)
    if blocks:
        written = next((b for b in blocks if defines.search(b)), max(blocks, key=len))
        return written if not start or not defines.search(written) else _header(start, defines) + written
    if defines.search(completion) and not completion[:1].isspace():
        return _header(start, defines) + completion
    if not start:
        return completion
    ended = BESIDE.search(completion)
    return start + (completion if ended is None else completion[: ended.start()])


def _header(start: str, defines: re.Pattern[str]) -> str:
    """What stands before the function in the beginning of a program: imports, helpers."""
    found = defines.search(start)
    return start[: found.start()] if found else ""


def _text(raw: Mapping[str, Any], names: Sequence[str]) -> str:
    name = next((n for n in names if raw.get(n) is not None), names[0])
    value = raw.get(name)
    if not isinstance(value, str):
        raise Malformed(f"must be text; the prompt stands in one of {', '.join(names)}", column=name, value=value)
    if not value.strip():
        raise Skip(EMPTY_PROMPT)
    return value


def _tests(raw: Mapping[str, Any]) -> str:
    found = _lines(raw, TESTS)
    if not found.strip():
        if not any(name in raw for name in TESTS):
            raise Malformed(f"is not there; tests stand in one of {', '.join(TESTS)}", column=TESTS[0], value=None)
        raise Skip("the row has no tests")
    return found


def _lines(raw: Mapping[str, Any], names: Sequence[str]) -> str:
    """Text, or a list of lines."""
    name = next((n for n in names if raw.get(n) is not None), names[0])
    value = raw.get(name)
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, Sequence) and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    raise Malformed("must be text or a list of texts", column=name, value=value)
