"""``task=constitution``: rows that a model writes and a judge compares by principles, made once and kept in the cache.

A task may be read in processes that hold no model, so the writer and the judge work in a process of their own, which
frees what they hold, before anything else begins.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt

from harness.base.errors import UserError, when_memory_runs_out
from harness.base.streams import silence
from harness.config import closure, identity
from harness.judges import constitution
from harness.judges.asking import Progress
from harness.judges.base import Judge
from harness.judges.constitution import Between
from harness.judges.labelling import Question, card, questions_of
from harness.judges.local import Local
from harness.sandbox.apart import Killed, apart
from harness.store.cache import Cache, Entry, default_dir
from harness.tasks.base import TaskData, Text, prompt_key
from harness.tasks.curating.applying import Curated
from harness.tasks.preferences import Preferences
from harness.tasks.prompts import Prompts
from harness.tasks.reading.checking import check
from harness.tasks.reading.files import existing, read_lines, read_table
from harness.tasks.reading.kept import present

STAGE = "constitution"
PAGE, PAIRS, REVISIONS = "card.md", "pairs.jsonl", "revisions.jsonl"
EVERY_S = 15.0
"""Between two lines of progress."""


@dataclass(frozen=True)
class Constitution(Curated):
    """Prompts and principles, of which a model and a judge make rows (Bai et al. 2022, arXiv 2212.08073).

    Attributes:
        prompts: a file: a prompt a line (.txt), or rows with a prompt.
        principles: a file: a principle a line, or a list of texts in YAML.
        writer: replies, criticises its reply by a principle, and revises it.
        judge: compares two replies by the same principle, in both orders.
        rows: ``pairs`` of what the judge compared, or the ``revisions`` alone, for SFT.
        between: what it compares: a reply and its ``revision``, or two ``samples`` of the writer.
        people: a file of pairs that people labelled, on which the judge is held against them; null: none.
        seed: of the principle that a prompt gets, and of the split.
        max_prompts: only so many, from the top.
        held_out: share of the prompts that is held out, one half for validation and one for the test.
        allow_skipped: share of the rows that may be unusable.
    """

    shape_rows: ClassVar[frozenset[str]] = Curated.shape_rows | {
        "prompts", "principles", "writer", "judge", "rows", "between", "people", "seed", "max_prompts", "held_out",
        "allow_skipped",
    }  # fmt: skip

    prompts: str
    principles: str
    writer: Judge
    judge: Judge
    rows: Literal["pairs", "revisions"] = "pairs"
    between: Between = "revision"
    people: str | None = None
    seed: Annotated[int, Ge(0)] = 0
    max_prompts: Annotated[int, Gt(0)] | None = None
    held_out: Annotated[float, Gt(0), Lt(1)] = 0.1
    allow_skipped: Annotated[float, Ge(0), Le(1)] = 0.05

    def __post_init__(self) -> None:
        """A local writer writes; ``ValueError`` is what ``build()`` collects."""
        super().__post_init__()
        if isinstance(self.writer, Local) and not self.writer.writes:
            object.__setattr__(self, "writer", replace(self.writer, read="words"))
        if self.rows == "revisions" and self.between == "samples":
            raise ValueError("rows=revisions needs between=revision: of two samples none is a revision")

    def load(self) -> TaskData:
        """Make the rows, on first use, and split them by prompt.

        Raises:
            UserError: a file, the writer or the judge is not as it must be, one of the two gives no answer, or what
                they gave makes no row.
        """
        entry = self.made(present() or Cache(default_dir()))
        made = entry.path / (REVISIONS if self.rows == "revisions" else PAIRS)
        page = entry.path / PAGE
        if not made.stat().st_size:
            rule = "the writer and the judge made no row that can be learned from"
            raise UserError(rule, key="task", value=STAGE, fix=f"see {page}, or ask another judge (judge@task.judge=…)")
        data = Preferences(
            path=str(made),
            seed=self.seed,
            held_out=self.held_out,
            allow_skipped=self.allow_skipped,
            curate=self.curate,
        ).loaded(among=prompts_of(self.prompts, self.max_prompts))  # whatever the judge leaves of them
        return replace(data, notes=[*data.notes, f"the rows were made by principles; {page} says how that went"])

    def fingerprint(self) -> str:
        """Of what the files hold, the writer and the judge."""
        return identity.digest(self.settled()._inputs())

    def settled(self) -> Constitution:
        """With a writer and a judge that stand for one commit each, if they are models of the hub.

        Raises:
            UserError: one of them is none, or the hub does not say which commit it is.
        """
        found = {}
        for role, judge in (("writer", self.writer), ("judge", self.judge)):
            try:
                for problem in judge.problems():
                    raise problem
                found[role] = judge.settled()
            except UserError as error:
                raise _of_role(error, role) from None
        return replace(self, **found)

    def made(self, cache: Cache) -> Entry:
        """The folder with the rows and their card, from the cache or made now, in a process of its own."""
        settled = self.settled()
        inputs = settled._inputs()

        def build(folder: Path) -> dict[str, Any]:
            try:
                constitution.check(self.writer, self.judge, self.between)
            except UserError as error:
                raise _of_role(error, (error.key or "").partition(".")[0]) from None
            try:
                return apart(_fill, settled, folder, cache.root)
            except Killed:
                raise _short("the process in which the writer and the judge worked was killed") from None

        return cache.fetch(STAGE, identity.digest(inputs), build, inputs=inputs)

    def read(self) -> tuple[list[Text], list[str], list[Question]]:
        """What the three files hold."""
        people = [] if self.people is None else questions_of(read_table(self.people, key="task.people"))[0]
        return prompts_of(self.prompts, self.max_prompts), principles_of(self.principles), people

    def write(self, folder: Path, answers: Path, progress: Progress | None = None) -> tuple[Mapping[str, str], str]:
        """Have the rows and their card written into ``folder``.

        Args:
            folder: must be there.
            answers: the cache of answers.
            progress: told of answers.

        Returns:
            The card's figures, and a line about what was asked.
        """
        prompts, principles, people = self.read()
        with when_memory_runs_out(_short("memory ran out where the writer and the judge worked")):
            made, asked = constitution.write(
                prompts, principles, self.writer, self.judge, answers,
                seed=self.seed, between=self.between, people=people, progress=progress,
            )  # fmt: skip
        page = card(made.pairs, title=Path(self.prompts).name, notes=[asked], beside=["principle"])
        (folder / PAGE).write_text(page, encoding="utf-8")
        for name, rows in ((PAIRS, made.pairs.rows), (REVISIONS, made.revisions)):
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / name).write_text(lines, encoding="utf-8")
        return made.pairs.facts, asked

    def _inputs(self) -> dict[str, Any]:
        prompts, principles, people = self.read()  # as read: a file's name says how that is
        return {
            "read": identity.digest([prompts, principles, [asdict(question) for question in people]]),
            "writer": self.writer.key_anywhere,
            "judge": {"who": self.judge.key_anywhere, "question": self.judge.question},
            "between": self.between,
            "seed": self.seed,
            "max_prompts": self.max_prompts,
            "code": closure.code_digest(closure.closure([__name__])),
        }


def _short(rule: str) -> UserError:
    """What is to be done where memory is too small."""
    fix = "see to memory (task.writer.batch_size, a smaller model), and begin again: answers are kept"
    return UserError(rule, key="task", value=STAGE, fix=fix)


def _of_role(error: UserError, role: str) -> UserError:
    """An error about a judge, as one about the judge that has this role in the task."""
    field_ = (error.key or "").partition(".")[2]
    fix = None
    if error.fix is not None:
        fix = error.fix.replace("judge=", f"judge@task.{role}=").replace("judge.", f"task.{role}.")
        fix = re.sub(r"(?<!task\.)writer\.", "task.writer.", fix)
    return UserError(error.rule, key=".".join(filter(None, ("task", role, field_))), value=error.value, fix=fix)


def _fill(task: Constitution, folder: Path, cache: Path) -> dict[str, Any]:
    """In a process of its own: the rows; returns what the cache notes of them."""
    last = time.monotonic()
    person = os.fdopen(os.dup(2), "w")
    silence(1, 2)  # library chatter; what matters is said

    def told(what: str, done: int, total: int) -> None:
        nonlocal last
        if done == total or time.monotonic() - last >= EVERY_S:
            last = time.monotonic()
            print(f"constitution · {what} · {done:,}/{total:,}", file=person, flush=True)

    facts, asked = task.write(folder, cache, told)
    return {"facts": dict(facts), "asked": asked}


def prompts_of(path: str, most: int | None = None) -> list[Text]:
    """The distinct prompts of a file, in order.

    Raises:
        UserError: there are none, or the rows have no prompt.
    """
    if Path(path).suffix == ".txt":
        found: list[Text] = list(read_lines(path, key="task.prompts"))
    else:
        table = read_table(path, key="task.prompts")
        found = [r["prompt"] for r in check(table, "prompts", Prompts({}).parser(table), allow_skipped=1.0).rows]
    return list({prompt_key(prompt): prompt for prompt in found}.values())[:most]


def principles_of(path: str) -> list[str]:
    """The principles of a file.

    Raises:
        UserError: there are none, or they are no texts.
    """
    if Path(path).suffix not in (".yaml", ".yml"):
        return read_lines(path, key="task.principles")
    import yaml

    try:
        found = yaml.safe_load(existing(path, "task.principles").read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        rule = f"cannot be read: {' '.join(str(error).split())[:200]}"
        raise UserError(rule, key="task.principles", value=path, fix="a list: - Be honest.") from None
    if not isinstance(found, list) or not found or not all(isinstance(one, str) and one.strip() for one in found):
        raise UserError("must be a list of texts", key="task.principles", value=path, fix="- Be honest.")
    return found
