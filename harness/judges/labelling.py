"""A judge as labeller: rows of a prompt and several replies become pairs with its verdicts. Pure but for the asking."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from harness.base import formatting
from harness.base.calibration import Share, share
from harness.base.errors import UserError
from harness.judges.asking import Bill, Interview, Progress, Verdict
from harness.judges.base import Judge, Pair, shown
from harness.judges.biases import agreement, biases, first_longer, turned_by_lot
from harness.tasks.audit import agreements
from harness.tasks.base import Row, Text
from harness.tasks.reading.annotators import ANNOTATIONS, vote_of, with_annotations
from harness.tasks.reading.checking import check
from harness.tasks.reading.formats import recognised
from harness.tasks.reading.messages import Malformed, Skip, aligned
from harness.tasks.reading.rows import Layout, Table, layout_of, pair

LISTS = ("replies", "completions", "responses")
"""Columns that are taken as lists of replies where none is named."""
ALONE = "it has one reply, or several that are equal"
JUDGE, ANOTHER = "the judge", "the judge beside"
SAMPLES, LONG = 20, 400
"""Rows that a card shows, and characters of a text in it."""


@dataclass(frozen=True)
class Question:
    """Two replies to compare.

    Attributes:
        prompt, first, second: text or messages.
        labelled: whether ``first`` is the one that the row calls chosen.
        votes: annotator -> label of the row, where there are annotators.
        beside: columns that its row has too.
    """

    prompt: Text
    first: Text
    second: Text
    labelled: bool = False
    votes: Mapping[str, Any] = field(default_factory=dict)
    beside: Mapping[str, Any] = field(default_factory=dict)

    @property
    def pair(self) -> Pair:
        """As a judge reads it."""
        return Pair.of(self.prompt, self.first, self.second)


@dataclass(frozen=True)
class Labelled:
    """What a judge made of questions.

    Attributes:
        rows: ``prompt, chosen, rejected``, and each annotator's label.
        dropped: reason -> questions that it left without a row.
        facts: name -> words, for a card.
    """

    rows: Sequence[Row]
    dropped: Mapping[str, int]
    facts: Mapping[str, str]


# -- questions -------------------------------------------------------------------------------------------


def questions_of(
    table: Table, replies: Sequence[str] = (), annotators: Sequence[str] = ()
) -> tuple[list[Question], list[str]]:
    """The pairs of replies of every row, and a note for each thing that was left out.

    Args:
        table: rows as read.
        replies: columns that hold a reply each, or one column that holds a list; none: ``chosen`` and ``rejected``
            (or any format of preferences that the harness knows), else a list under one of ``LISTS``.
        annotators: columns of labels.

    Raises:
        UserError: a column is not there, or rows are malformed.
    """
    notes: Sequence[str] = ()
    paired = {"chosen", "rejected"} <= set(table.columns)
    listed = [name for name in LISTS if name in table.columns]
    if not replies and not paired:
        replies = listed[:1]
    if replies:
        parse = partial(_replies, layout=_layout(table, replies), count=len(replies))
    else:
        found = recognised(table, {})
        table, notes = found.table, found.notes
        parse = partial(_labelled, layout=layout_of(table, {}, kind="preferences"))
    parse = with_annotations(table, annotators, parse, least=1, key="--annotators")
    checked = check(table, "preferences", parse, allow_skipped=1.0, notes=notes)
    questions, silent = [], 0
    for row in checked.rows:
        votes = row.get(ANNOTATIONS, {}) if row["given"] == 2 else {}
        silent += not votes and ANNOTATIONS in row
        for first, second in itertools.combinations(row["replies"], 2):
            questions.append(Question(row["prompt"], first, second, row["labelled"], votes))
    told = [f"{silent:,} rows have other than two replies: their annotators' labels say nothing of a pair"]
    return questions, [*checked.notes, *(told if silent else [])]


def _layout(table: Table, replies: Sequence[str]) -> Layout:
    names = {"prompt": "prompt", **{str(i): name for i, name in enumerate(replies)}}
    if absent := [name for name in names.values() if name not in table.columns]:
        raise UserError(
            f"no such column: {', '.join(absent)}; found: {', '.join(table.columns)}",
            key="--replies",
            value=",".join(replies),
            fix="name the columns that hold a reply each, or the one that holds a list of them, beside prompt",
        )
    return Layout("preferences", names, table.encoded)


def _labelled(raw: Row, layout: Layout) -> Row:
    """A row of preferences, whose first reply is the chosen one."""
    row = pair(raw, layout)
    return {"prompt": row["prompt"], "replies": [row["chosen"], row["rejected"]], "given": 2, "labelled": True}


def _replies(raw: Row, layout: Layout, count: int) -> Row:
    """A row whose replies say nothing of which is better."""
    if count > 1:
        replies = [layout.text(raw, str(i)) for i in range(count)]
    else:
        values, column = layout.value(raw, "0"), layout.names["0"]
        if not isinstance(values, list) or not all(isinstance(value, str | list | Mapping) for value in values):
            raise Malformed("must be a list of replies, each text or messages", column=column, value=values)
        replies = [Layout("preferences", {"0": column}).text({column: value}, "0") for value in values]
    prompt, replies = aligned(layout.text(raw, "prompt"), *replies)
    distinct = [reply for i, reply in enumerate(replies) if reply not in replies[:i]]
    if len(distinct) < 2:
        raise Skip(ALONE)
    return {"prompt": prompt, "replies": distinct, "given": len(replies), "labelled": False}


# -- answers ---------------------------------------------------------------------------------------------


def label(
    judge: Judge,
    questions: Sequence[Question],
    folder: Path | None,
    progress: Progress | None = None,
    beside: Judge | None = None,
) -> tuple[Labelled, Bill]:
    """Ask about each question in both orders; what was answered before is not asked again.

    Args:
        judge: whose verdicts make the rows.
        questions: pairs of replies.
        folder: in which answers are kept.
        progress: told of answers.
        beside: another judge, who stands among the annotators.

    Raises:
        UserError: the judge gave no answer; all that it had given are kept.
    """

    def asked(one: Judge) -> tuple[list[Verdict], Bill]:
        with Interview(one, folder) as interview:
            return interview.verdicts([question.pair for question in questions], progress)

    verdicts, bill = asked(judge)
    if beside is None:
        return labelled(questions, verdicts), bill
    theirs, more = asked(beside)
    return labelled(questions, verdicts, {ANOTHER: theirs}), bill + more


def labelled(
    questions: Sequence[Question], verdicts: Sequence[Verdict], others: Mapping[str, Sequence[Verdict]] | None = None
) -> Labelled:
    """Rows of those questions on which both orders name one winner, and what is to be known of the others."""
    rows, dropped = [], Counter[str]()
    for question, verdict in zip(questions, verdicts, strict=True):
        if (why := _undecided(verdict)) is not None:
            dropped[why] += 1
            continue
        sides = (question.first, question.second)
        chosen, rejected = sides if verdict.straight == "first" else sides[::-1]
        rows.append(
            {"prompt": question.prompt, "chosen": chosen, "rejected": rejected, **question.votes, **question.beside}
        )
    return Labelled(rows, dropped, facts_of(questions, verdicts, others))


def _undecided(verdict: Verdict) -> str | None:
    if not verdict.readable:
        return "an answer cannot be read"
    if not verdict.consistent:
        return "the two orders disagree"
    return "a tie in both orders" if verdict.straight == "tie" else None


def facts_of(
    questions: Sequence[Question], verdicts: Sequence[Verdict], others: Mapping[str, Sequence[Verdict]] | None = None
) -> dict[str, str]:
    """Yield, biases, and agreement with labels and annotators, in words."""
    n, pairs = len(questions), [question.pair for question in questions]
    reasons = Counter(_undecided(verdict) for verdict in verdicts)
    facts = {"pairs asked about, in both orders": f"{n:,}", "rows with a verdict": of_all(reasons.pop(None, 0), n)}
    facts |= {f"dropped: {why}": of_all(count, n) for why, count in sorted(reasons.items(), key=lambda kv: str(kv[0]))}
    found = biases(pairs, verdicts)
    facts |= _shares(
        {
            "answers that name the reply shown first": found.first,
            "pairs with one verdict in both orders": found.consistent,
            "verdicts for the longer reply": found.longer,
            "unreadable answers": found.unreadable,
        }
    )
    return facts | agreement_of(questions, verdicts, others)


def agreement_of(
    questions: Sequence[Question], verdicts: Sequence[Verdict], others: Mapping[str, Sequence[Verdict]] | None = None
) -> dict[str, str]:
    """Agreement of verdicts with labels, annotators and other judges, in words; empty where the questions have none."""
    pairs, facts = [question.pair for question in questions], dict[str, str]()
    known = [(p, v) for p, q, v in zip(pairs, questions, verdicts, strict=True) if q.labelled]
    if known:
        points, kappa = agreement([v for _, v in known], [turned_by_lot(p) for p, _ in known])
        longer = first_longer([p for p, _ in known])
        facts |= _shares({"labels for the longer reply": longer, "agreement with the labels": points})
        facts["kappa with the labels"] = "none: no pair is decided, or chance agrees always" if kappa is None else (
            f"Cohen κ {kappa:.2f} over {sum(v.consistent and v.straight != 'tie' for _, v in known):,} decided pairs"
        )  # fmt: skip
    votes = [{name: vote_of(vote) for name, vote in question.votes.items()} for question in questions]
    words = {word for row in votes for word in row.values() if word is not None}
    if words <= {"0", "1", "2"} and ("2" in words or "0" not in words):
        people = [[word for word in row.values() if word is not None] for row in votes]
        for name, said in {JUDGE: verdicts, **(others or {})}.items():
            told = map(_in_their_words, questions, said, people)
            votes = [row and {**row, name: word} for row, word in zip(votes, told, strict=True)]
    elif words:
        some = ", ".join(sorted(words)[:5])
        facts[f"agreement with {JUDGE}"] = f"unknown: labels are {some}, and not 1 and 2 for a reply and 0 for a tie"
    return facts | agreements([{ANNOTATIONS: row} for row in votes if row])


def _in_their_words(question: Question, verdict: Verdict, votes: Sequence[str]) -> str | None:
    """The judge's verdict as the annotators would say it; None where it, or what they mean, is unknown.

    Of a labelled row the label that most annotators gave means the chosen reply; elsewhere 1 means the first and 2 the
    second, and 0 is a tie.
    """
    if not verdict.consistent or not votes:
        return None
    if verdict.straight == "tie":
        return "0"
    won_first = verdict.straight == "first"
    if not question.labelled:
        return "1" if won_first else "2"
    (most, count), *others = Counter(votes).most_common()
    if most not in ("1", "2") or any(n == count for _, n in others):
        return None
    return most if won_first else {"1": "2", "2": "1"}[most]


def of_all(count: int, n: int) -> str:
    """A count and its share, in words."""
    return f"{count:,} of {n:,} ({count / n:.1%})" if n else "0"


def _shares(columns: Mapping[str, Sequence[float]]) -> dict[str, str]:
    return {name: _spoken(share(values), len(values)) for name, values in columns.items() if values}


def _spoken(found: Share, n: int) -> str:
    bounds = "" if found.low is None or found.high is None else f" ({found.low:.1%} to {found.high:.1%})"
    return f"{found.mean:.1%}{bounds} of {n:,}"


# -- the card --------------------------------------------------------------------------------------------


def card(found: Labelled, *, title: str, notes: Sequence[str] = (), beside: Sequence[str] = ()) -> str:
    """One page of markdown: yields, biases, agreement, and some rows with their columns ``beside`` the replies."""
    rows = [[formatting.escape(name), formatting.escape(words)] for name, words in found.facts.items()]
    parts = [f"# Labels of {formatting.escape(title)}", formatting.table(["what", "found"], rows, left=2)]
    if notes:
        parts.append("## Notes\n\n" + "\n".join(f"- {formatting.escape(note)}" for note in notes))
    if found.rows:
        names = ("prompt", "chosen", "rejected", *beside)
        some = found.rows[:: max(1, len(found.rows) // SAMPLES)][:SAMPLES]
        cells = [[formatting.escape(shown(row[name]), LONG) for name in names] for row in some]
        parts.append(f"## {len(some)} of the rows\n\n" + formatting.table(names, cells, left=len(names)))
    return "\n\n".join(parts) + "\n"
