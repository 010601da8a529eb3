"""Completions that are paid for what a judge says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Le

from harness.base.errors import UserError
from harness.judges.asking import Bill, Interview
from harness.judges.base import GRADES, QUESTION, Judge, Longer, Pair, shown
from harness.judges.local import Local, in_our_words
from harness.rewards.base import Desk, Opened, Reward, ScoreFunction
from harness.tasks.base import Row, Task, TaskData, Text, prompt_key

CHOSEN = "chosen"


@dataclass(frozen=True)
class JudgeReward(Reward):
    """A judge's verdict on a completion, between 0 and 1.

    Against a fixed reply to the same prompt, asked in both orders: 1 where both name the completion, 0 where both name
    the other, and ½ where they disagree or call it a tie. Or a grade from 1 to 10, alone: (grade - 1) / 9.

    Attributes:
        judge: who is asked; each answer is kept, and a question is asked once.
        ask: ``pair`` or ``grade``.
        against: the other reply (``pair``): ``chosen`` is the one that the data prefers for this prompt; else a column
            of the prompt rows.
        unreadable: paid where the judge's answer cannot be read (``train/reward_unreadable``).
    """

    judge: Judge = field(default_factory=Longer)
    ask: Literal["pair", "grade"] = "pair"
    against: str = CHOSEN
    unreadable: Annotated[float, Ge(0), Le(1)] = 0.5

    @classmethod
    def held(cls, judge: Judge) -> JudgeReward | None:
        """Of a judge that a trial holds on its own device; None of any other."""
        return cls(judge) if isinstance(judge, Local) and judge.device != "cpu" else None

    def problems(self, task: Task) -> list[UserError]:
        """The judge's own, and that it grades where it is asked for a grade."""
        found = self.judge.problems()
        if self.ask == "grade" and not self.judge.writes:
            fix = "reward.ask=pair; a local judge grades with judge.read=words"
            found.append(UserError("this judge only compares replies", key="reward.ask", value="grade", fix=fix))
        if self.ask == "grade" and self.judge.question != QUESTION:
            fix = "say what good means by reward.judge.criterion"
            rule = "compares two replies, and a grade is asked for in words of its own"
            found.append(UserError(rule, key="reward.judge.question", value=self.judge.question, fix=fix))
        return found

    def data_problems(self, data: TaskData) -> list[UserError]:
        """Every prompt must have a reply to be held against: one to train on, and one that the curve asks about."""
        if self.ask == "grade" or not data.train_prompts:
            return []
        others = _others(data)
        for kind, rows in {"prompts": data.train_prompts, **_held(data)}.items():
            if bare := [row for row in rows if self._other(row, others) is None]:
                known = ", ".join(sorted(set(bare[0]) - {"prompt"})) or "no other column"
                rule = f"{len(bare):,} of {len(rows):,} {kind} have no such reply to be compared with"
                fix = f"a column of the prompt rows, which have {known}; or reward.ask=grade, which compares nothing"
                return [UserError(rule, key="reward.against", value=self.against, fix=fix)]
        return []

    def contents(self) -> Mapping[str, str]:
        """What the judge's answers depend on."""
        return {"judge": self.judge.settled().key}

    def __call__(self, rows: Sequence[Row], completions: Sequence[str]) -> list[float]:
        """Not without the trial's rows."""
        raise TypeError("open() the reward first: it needs the replies to compare with")

    def open(self, desk: Desk) -> ScoreFunction:
        """With the replies to compare with, and the answers that are kept."""
        return _Asking(self, _others(desk.data), Interview(self.judge, desk.cache))

    def without_weights(self) -> Reward:
        """Nobody is asked about tensors without data, but a local judge is held, and reads questions of full length."""
        return _Unasked(self.judge, self.ask)

    def _other(self, row: Row, others: Mapping[str, Text]) -> Text | None:
        """The reply that a row's completion is held against; None where there is none."""
        if self.against == CHOSEN and CHOSEN not in row:
            return others.get(prompt_key(row["prompt"]))
        value = row.get(self.against)
        return value if value is None or isinstance(value, str | list) else str(value)


def _held(data: TaskData) -> dict[str, Sequence[Row]]:
    return {f"held-out prompts ({split})": rows for split, rows in data.eval_prompts.items()}


def _others(data: TaskData) -> dict[str, Text]:
    """The chosen reply of every prompt that has one, the first of several."""
    found: dict[str, Text] = {}
    for rows in (data.train_pairs, *data.eval_pairs.values()):
        for row in rows:
            found.setdefault(prompt_key(row["prompt"]), row["chosen"])
    for row in data.train_unpaired:
        if row["label"]:
            found.setdefault(prompt_key(row["prompt"]), row["completion"])
    return found


class _Asking(Opened):
    """Asks about each batch all at once, and remembers what could not be read of it."""

    def __init__(self, reward: JudgeReward, others: Mapping[str, Text], interview: Interview):
        self._reward, self._others, self._interview = reward, others, interview
        self._means: Mapping[str, float] = {}

    def __call__(self, rows: Sequence[Row], completions: Sequence[str], ended: Sequence[bool]) -> list[float]:
        values, bill = (self._won if self._reward.ask == "pair" else self._graded)(rows, completions)
        unread = sum(value is None for value in values) / max(1, len(values))
        self._means = {"reward_unreadable": unread, "judge_asked": float(bill.asked)}
        return [self._reward.unreadable if value is None else value for value in values]

    def means(self) -> Mapping[str, float]:
        return self._means

    def _won(self, rows: Sequence[Row], completions: Sequence[str]) -> tuple[list[float | None], Bill]:
        pairs = []
        for row, text in zip(rows, completions, strict=True):
            if (other := self._reward._other(row, self._others)) is None:
                raise UserError(
                    f"the prompt {shown(row['prompt'])[:60]!r} has no such reply to be compared with",
                    key="reward.against",
                    value=self._reward.against,
                    fix="a column that all prompt rows have, or reward.ask=grade",
                )
            pairs.append(Pair.of(row["prompt"], text, other))
        verdicts, bill = self._interview.verdicts(pairs)
        return [verdict.won for verdict in verdicts], bill

    def _graded(self, rows: Sequence[Row], completions: Sequence[str]) -> tuple[list[float | None], Bill]:
        judge = self._reward.judge
        asked = [judge.asks_grade(shown(r["prompt"]), text) for r, text in zip(rows, completions, strict=True)]
        answers, bill = self._interview.answers(asked)
        low, high = GRADES
        grades = [answer.grade for answer in answers]
        return [None if grade is None else (grade - low) / (high - low) for grade in grades], bill


@dataclass(frozen=True)
class _Unasked(Reward):
    """Pays the same for all; a local judge takes its memory."""

    judge: Judge
    ask: Literal["pair", "grade"]

    def open(self, desk: Desk) -> ScoreFunction:
        """With a judge of the right shape, where one is held on the trial's device."""
        if JudgeReward.held(self.judge) is None:
            return super().open(desk)
        from harness.judges.reading import Reader

        assert isinstance(self.judge, Local)
        with in_our_words():
            reader = Reader(self.judge, shape=desk.dtype)
        desk.roles.setdefault("reward", []).extend(reader.model.parameters())
        replies = 2 if self.ask == "pair" else 1

        def asked(rows: Sequence[Row], completions: Sequence[str], _: Sequence[bool]) -> list[float]:
            questions = [self._empty(shown(row["prompt"])) for row in rows]
            reader.rehearse(questions * replies, replies * (desk.longest or 0))
            return self(rows, completions)

        return asked

    def _empty(self, prompt: str) -> str:
        """A question without what is to be judged."""
        return self.judge.asks(Pair(prompt, "", "")) if self.ask == "pair" else self.judge.asks_grade(prompt, "")

    def __call__(self, rows: Sequence[Row], completions: Sequence[str]) -> list[float]:
        return [0.5] * len(completions)
