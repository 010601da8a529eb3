"""Rows from principles: a model replies, criticises its reply by a principle and revises it; a judge compares two.

After Bai et al. 2022 (arXiv 2212.08073). Their first stage, critique and revision, gives the rows for SFT. In their
second a model chooses by a principle between two replies; these are the first reply and its revision, or two samples
of the model that learned from the revisions.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from harness.base.errors import UserError
from harness.judges.asking import Bill, Interview, Progress
from harness.judges.base import EXCHANGE, Judge, filled, shown, spoken
from harness.judges.labelling import Labelled, Question, agreement_of, labelled, of_all
from harness.tasks.base import Row, Text

Between = Literal["revision", "samples"]
"""What is compared: a reply and its revision, or two samples of the writer."""
_BY_PRINCIPLE = f"""\
A user wrote, and an assistant replied.

{EXCHANGE}

The principle is: {{principle}}"""
CRITIQUE = f"""\
{_BY_PRINCIPLE}

Say briefly and specifically where the reply falls short of the principle, if it does."""
REVISION = f"""\
{_BY_PRINCIPLE}

This was said of the reply:

<critique>
{{critique}}
</critique>

Write the reply anew so that it follows the principle. Answer with the new reply alone."""


@dataclass(frozen=True)
class Draft:
    """A prompt's way through the first stage.

    Attributes:
        principle: drawn for this prompt.
        reply: the writer's.
        other: its revision, or another sample.
        critique: None where there is another sample.
        whole: whether the writer could read all that it was asked, and came to the end of each answer.
    """

    prompt: Text
    principle: str
    reply: str
    other: str
    critique: str | None
    whole: bool = True

    @property
    def problem(self) -> str | None:
        """Why nothing can be learned from it; None where something can."""
        sampled = self.critique is None
        if not self.whole:
            return "an answer was cut off, or its question too long: writer.max_tokens, or the model's context"
        if not self.reply or not self.other:
            return "a sample is empty" if sampled else "a reply or its revision is empty"
        if self.reply == self.other:
            return "both samples are equal" if sampled else "the revision is the reply"
        return None


@dataclass(frozen=True)
class Written:
    """What came of a constitution.

    Attributes:
        drafts: one for each prompt.
        revisions: rows for SFT: ``prompt, completion, label, principle``; none of samples.
        pairs: rows for everything else, with the figures of both stages.
    """

    drafts: Sequence[Draft]
    revisions: Sequence[Row]
    pairs: Labelled


def write(
    prompts: Sequence[Text],
    principles: Sequence[str],
    writer: Judge,
    judge: Judge,
    folder: Path | None,
    *,
    seed: int = 0,
    between: Between = "revision",
    people: Sequence[Question] = (),
    progress: Progress | None = None,
) -> tuple[Written, str]:
    """Both stages; every answer is kept as it comes, and none that is there is asked for again.

    Args:
        prompts: each once.
        principles: of which one is drawn for each prompt, by the prompt and the seed.
        writer: replies, criticises and revises.
        judge: says which of the two is better, by the prompt's principle and in both orders.
        folder: the cache.
        seed: of the draw.
        between: what is compared.
        people: pairs that people labelled, about which the judge is asked too, by a principle drawn likewise.
        progress: told of answers.

    Returns:
        The rows, and a line about what was asked.

    Raises:
        UserError: the writer only compares replies, says the same each time where samples are asked for, or one of the
            two gives no answer.
    """
    check(writer, judge, between)

    def principle(prompt: Text) -> str:
        return random.Random(f"{seed}-{shown(prompt)}").choice(list(principles))

    chosen = [principle(prompt) for prompt in prompts]
    made = _revised if between == "revision" else _sampled
    parts, whole, bills = made(prompts, chosen, writer, folder, progress)
    drafts = [Draft(*one) for one in zip(prompts, chosen, *parts, whole, strict=True)]
    sound = [draft for draft in drafts if draft.problem is None]
    questions = [_question(draft) for draft in sound]
    with Interview(judge, folder) as interview:
        verdicts, bill = interview.verdicts([q.pair for q in questions], progress, [d.principle for d in sound])
        theirs = [principle(question.prompt) for question in people]
        held, extra = interview.verdicts([q.pair for q in people], progress, theirs)
    bills += [bill, extra]
    pairs = labelled(questions, verdicts)
    facts = {"prompts": f"{len(prompts):,}", "principles": f"{len(principles):,}", **_yields(drafts, between)}
    if between == "revision":
        won = sum(v.consistent and v.straight == "first" for v in verdicts)
        facts["verdicts for the revision"] = f"{won:,} of {len(pairs.rows):,}"
    facts |= dict(pairs.facts) | {f"people's pairs: {name}": fact for name, fact in agreement_of(people, held).items()}
    revisions = [_row(draft) for draft in sound if draft.critique is not None]
    total = sum(bills, Bill())
    written = Written(drafts, revisions, Labelled(pairs.rows, pairs.dropped, facts))
    return written, f"{total.asked:,} answers were asked for, and {total.kept:,} were there already"


def check(writer: Judge, judge: Judge, between: Between) -> None:
    """Raise where the two cannot do what is asked of them."""
    if not writer.writes:
        raise UserError("only compares replies, and a writer writes", key="writer", fix="writer.read=words, or served")
    if between == "samples" and writer.again(1) is None:
        rule = "says the same each time, and two samples are to be compared"
        raise UserError(rule, key="writer", fix="writer.temperature=1.0")
    if not judge.reads_criterion:
        rule = f"is a {type(judge).__name__}, which compares in its own way and reads no principle"
        raise UserError(rule, key="judge", fix="judge=local judge.path=FOLDER, or judge=served judge.model=NAME")
    if "{criterion}" not in judge.question:
        rule = "must hold {criterion}, or the judge does not see the principle"
        raise UserError(rule, key="judge.question", value=judge.question, fix="leave the question as it is")


Parts = tuple[Sequence[Sequence[str | None]], list[bool], list[Bill]]
"""Replies, others and critiques; whether each prompt's answers are whole; what was asked."""


def _revised(
    prompts: Sequence[Text], principles: Sequence[str], writer: Judge, folder: Path | None, progress: Progress | None
) -> Parts:
    """A reply to each prompt, a critique and a revision."""
    with Interview(writer, folder) as interview:
        told, whole, bills = _telling(interview, len(prompts), progress)
        texts = [shown(prompt) for prompt in prompts]
        replies = told(texts, "reply")
        parts: list[Mapping[str, str]] = [
            {"prompt": text, "reply": reply, "principle": principle}
            for text, reply, principle in zip(texts, replies, principles, strict=True)
        ]
        critiques = told([filled(CRITIQUE, part) for part in parts], "critique")
        parts = [{**part, "critique": critique} for part, critique in zip(parts, critiques, strict=True)]
        revisions = told([filled(REVISION, part) for part in parts], "revision")
    return (replies, revisions, critiques), whole, bills


def _sampled(
    prompts: Sequence[Text], _: Sequence[str], writer: Judge, folder: Path | None, progress: Progress | None
) -> Parts:
    """Two samples for each prompt."""
    found, whole, bills = [], [True] * len(prompts), []
    for number, name in enumerate(("first sample", "second sample")):
        again = writer.again(number)
        assert again is not None
        with Interview(again, folder) as interview:
            told, so_far, bill = _telling(interview, len(prompts), progress)
            found.append(told([shown(prompt) for prompt in prompts], name))
        whole = [before and now for before, now in zip(whole, so_far, strict=True)]
        bills += bill
    return (*found, [None] * len(prompts)), whole, bills


def _telling(
    interview: Interview, count: int, progress: Progress | None
) -> tuple[Callable[[Sequence[str], str], list[str]], list[bool], list[Bill]]:
    """Asks for so many answers at a time; whether all of a place were whole, and bills, are filled as it goes."""
    whole, bills = [True] * count, list[Bill]()

    def told(questions: Sequence[str], what: str) -> list[str]:
        answers, bill = interview.answers(questions, partial(_named, progress, what))
        bills.append(bill)
        whole[:] = [before and answer.whole for before, answer in zip(whole, answers, strict=True)]
        return [spoken(answer.text) for answer in answers]

    return told, whole, bills


def _named(progress: Progress | None, what: str, _: str, done: int, total: int) -> None:
    """Progress under the name of a step."""
    if progress is not None:
        progress(what, done, total)


def _question(draft: Draft) -> Question:
    """Revision or first reply, or which of two samples?"""
    other, reply = _as(draft.prompt, draft.other, draft.reply)
    return Question(draft.prompt, other, reply, beside={"principle": draft.principle})


def _row(draft: Draft) -> Row:
    (completion,) = _as(draft.prompt, draft.other)
    return {"prompt": draft.prompt, "completion": completion, "label": True, "principle": draft.principle}


def _as(prompt: Text, *replies: str) -> list[Text]:
    """Replies in the form of their prompt."""
    return [text if isinstance(prompt, str) else [{"role": "assistant", "content": text}] for text in replies]


def _yields(drafts: Sequence[Draft], between: Between) -> dict[str, str]:
    reasons = [draft.problem for draft in drafts]
    n, left = len(drafts), reasons.count(None)
    found = {"rows of revisions" if between == "revision" else "pairs of samples": of_all(left, n)}
    return found | {f"left out: {why}": f"{reasons.count(why):,}" for why in sorted({r for r in reasons if r})}
