"""Rows from principles: a model replies, criticises its reply by a principle and revises it; a judge compares the two.

After Bai et al. 2022 (arXiv 2212.08073). Their first stage, critique and revision, gives the rows for SFT. Their second
has a model choose between two replies by a principle; here the two are the first reply and its revision.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from harness.base.errors import UserError
from harness.judges.asking import Interview, Progress
from harness.judges.base import EXCHANGE, Judge, filled, shown, spoken
from harness.judges.labelling import Labelled, Question, labelled, of_all
from harness.tasks.base import Row, Text

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
        reply, critique, revision: what the writer wrote.
        whole: whether it could read all that it was asked, and came to the end of each answer.
    """

    prompt: Text
    principle: str
    reply: str
    critique: str
    revision: str
    whole: bool = True

    @property
    def problem(self) -> str | None:
        """Why nothing can be learned from it; None where something can."""
        if not self.whole:
            return "an answer was cut off, or its question too long: writer.max_tokens, or the model's context"
        if not self.reply or not self.revision:
            return "a reply or its revision is empty"
        return "the revision is the reply" if self.reply == self.revision else None


@dataclass(frozen=True)
class Written:
    """What came of a constitution.

    Attributes:
        drafts: one for each prompt.
        revisions: rows for SFT: ``prompt, completion, label, principle``.
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
    progress: Progress | None = None,
) -> tuple[Written, str]:
    """Both stages; every answer is kept as it comes, and none that is there is asked for again.

    Args:
        prompts: each once.
        principles: of which one is drawn for each prompt, by the prompt and the seed.
        writer: replies, criticises and revises.
        judge: says which of reply and revision is better, by the prompt's principle and in both orders.
        folder: the cache.
        seed: of the draw.
        progress: told of answers.

    Returns:
        The rows, and a line about what was asked.

    Raises:
        UserError: the writer only compares replies, or one of the two gives no answer.
    """
    if not writer.writes:
        raise UserError("only compares replies, and a writer writes", key="writer", fix="writer.read=words, or served")
    if "{criterion}" not in judge.question:
        rule = "must hold {criterion}, or the judge does not see the principle"
        raise UserError(rule, key="judge.question", value=judge.question, fix="leave the question as it is")
    chosen = [random.Random(f"{seed}-{shown(p)}").choice(list(principles)) for p in prompts]
    asked = kept = 0
    with Interview(writer, folder) as interview:
        whole = [True] * len(prompts)

        def told(questions: Sequence[str], what: str) -> list[str]:
            nonlocal asked, kept, whole
            answers, bill = interview.answers(questions, partial(_named, progress, what))
            asked, kept = asked + bill.asked, kept + bill.kept
            whole = [before and answer.whole for before, answer in zip(whole, answers, strict=True)]
            return [spoken(answer.text) for answer in answers]

        texts = [shown(prompt) for prompt in prompts]
        replies = told(texts, "reply")
        parts = [
            {"prompt": text, "reply": reply, "principle": principle}
            for text, reply, principle in zip(texts, replies, chosen, strict=True)
        ]
        critiques = told([filled(CRITIQUE, part) for part in parts], "critique")
        parts = [{**part, "critique": critique} for part, critique in zip(parts, critiques, strict=True)]
        revisions = told([filled(REVISION, part) for part in parts], "revision")
    drafts = [Draft(*one) for one in zip(prompts, chosen, replies, critiques, revisions, whole, strict=True)]
    sound = [draft for draft in drafts if draft.problem is None]
    questions = [_question(draft) for draft in sound]
    with Interview(judge, folder) as interview:
        criteria = [d.principle for d in sound]
        verdicts, bill = interview.verdicts([q.pair for q in questions], progress, criteria)
    asked, kept = asked + bill.asked, kept + bill.kept
    pairs = labelled(questions, verdicts)
    won = sum(v.consistent and v.straight == "first" for v in verdicts)
    facts = {"prompts": f"{len(prompts):,}", "principles": f"{len(principles):,}", **_yields(drafts)}
    facts |= {"verdicts for the revision": f"{won:,} of {len(pairs.rows):,}"}
    written = Written(drafts, [_row(d) for d in sound], Labelled(pairs.rows, pairs.dropped, facts | dict(pairs.facts)))
    return written, f"{asked:,} answers were asked for, and {kept:,} were there already"


def _named(progress: Progress | None, what: str, _: str, done: int, total: int) -> None:
    """Progress under the name of a step."""
    if progress is not None:
        progress(what, done, total)


def _question(draft: Draft) -> Question:
    """Revision or first reply?"""
    revision, reply = _as(draft.prompt, draft.revision, draft.reply)
    return Question(draft.prompt, revision, reply, beside={"principle": draft.principle})


def _row(draft: Draft) -> Row:
    (completion,) = _as(draft.prompt, draft.revision)
    return {"prompt": draft.prompt, "completion": completion, "label": True, "principle": draft.principle}


def _as(prompt: Text, *replies: str) -> list[Text]:
    """Replies in the form of their prompt."""
    return [text if isinstance(prompt, str) else [{"role": "assistant", "content": text}] for text in replies]


def _yields(drafts: Sequence[Draft]) -> dict[str, str]:
    reasons = [draft.problem for draft in drafts]
    n, left = len(drafts), reasons.count(None)
    found = {"rows of revisions": of_all(left, n)}
    return found | {f"left out: {why}": f"{reasons.count(why):,}" for why in sorted({r for r in reasons if r})}
