"""Data as people have it, brought into our columns: Alpaca, ShareGPT, rankings, scores, system and history. Pure.

Each is recognised by the names of its columns, and only where ours are not there and the user has not said which is
which. What is dropped on the way is counted by name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.tasks.base import Row
from harness.tasks.reading.messages import Malformed, Skip, Undecided
from harness.tasks.reading.rows import Table

CONVERSATIONS = ("conversations", "conversation", "messages", "dialog", "dialogue")
INSTRUCTIONS = ("instruction", "query", "question")
OUTPUTS = ("output", "response", "answer")
RESPONSES = ("responses", "completions", "answers", "outputs", "generations")
RATINGS = ("ratings", "scores", "rewards", "rating", "score")
RANKS = ("ranks", "ranking", "rankings", "rank")
SIDES = (
    ("response_a", "response_b"), ("response_0", "response_1"), ("response_1", "response_2"), ("output_1", "output_2"),
    ("answer_a", "answer_b"), ("answer_0", "answer_1"), ("conversation_a", "conversation_b"),
    ("response1", "response2"), ("completion_a", "completion_b"), ("human_ref_A", "human_ref_B"),
)  # fmt: skip
CHOICES = ("winner", "preference", "preferred", "better_response_id", "choice", "better", "label")
SIGNED = ("preference_strength", "overall_preference")
"""Below zero the first side is better, above it the second (HelpSteer2, HelpSteer3)."""
POST = ("history",)
"""What is asked, in data with the sides below; elsewhere the turns before the prompt."""
FIRST_IF_ONE = {"human_ref_A": "labels"}
"""Column of a first side -> column that is 1 where that side is better and 0 where the other is (SHP)."""
MARKS = ("score", "rating", "reward", "overall_score")
"""What a column with a number for each side begins or ends with: ``score_a``, ``response_a_score``."""
SCORES = (("chosen_score", "rejected_score"), ("score_chosen", "score_rejected"), ("chosen_rating", "rejected_rating"),
          ("chosen-rating", "rejected-rating"), ("rating_chosen", "rating_rejected"))  # fmt: skip
LABELS = ("kto_tag", "desirable", "is_desirable", "binary_label")
BESIDE = ("system", "system_prompt", "history")
NOT_READ = ("tools", "images", "image", "videos", "video", "audios", "audio")
"""Columns that change what a model should see, and that are not read."""
ALONE = (CONVERSATIONS, INSTRUCTIONS, OUTPUTS, RESPONSES, RATINGS, RANKS, CHOICES, SIGNED, LABELS, BESIDE, NOT_READ,
         ("input", "context", *FIRST_IF_ONE.values()))  # fmt: skip


def marks_of(sides: tuple[str, str]) -> list[tuple[str, str]]:
    """Pairs of columns that may hold a number for each side; its last character tells a side from the other."""
    ends = [side[-1] for side in sides]
    found = []
    for mark in MARKS:
        found += [(f"{mark}{ends[0]}", f"{mark}{ends[1]}"), (f"{mark}_{ends[0]}", f"{mark}_{ends[1]}")]
        found += [(f"{sides[0]}_{mark}", f"{sides[1]}_{mark}")]
    return found


KNOWN = frozenset(
    name for names in (*ALONE, *SIDES, *SCORES, *(m for s in SIDES for m in marks_of(s))) for name in names
)

TIE = "the two sides are rated alike"
WORSE = "chosen is rated below rejected"


@dataclass(frozen=True)
class Recognised:
    """A table in our columns.

    Attributes:
        table: with rows as ``rows.layout_of`` expects them.
        notes: a line for each thing that was read in another way or dropped.
    """

    table: Table
    notes: Sequence[str] = ()


def recognised(table: Table, columns: Mapping[Any, str]) -> Recognised:
    """The table in our columns where its own are of a known format, else as it is.

    Args:
        table: rows as read.
        columns: our column -> theirs; where the user names one, that column is taken as it is.
    """
    names = set(table.columns)
    told = {ours for ours, theirs in columns.items() if theirs != ours}
    has = {ours for ours in ("prompt", "chosen", "rejected", "completion", "label") if columns.get(ours, ours) in names}
    steps: list[tuple[str, Callable[[dict[str, Any]], None]]] = []
    if not ({"chosen", "rejected"} <= has or {"completion", "label"} <= has) and not told:
        steps += _answers(names)
    pairs = {"chosen", "rejected"} <= has
    if "prompt" not in has and "prompt" not in told:
        steps += _prompt(names, pairs)
    if pairs:
        steps += [(f"pairs whose {high} is not above {low} are left out", _scored(high, low))
                  for high, low in SCORES if {high, low} <= names]  # fmt: skip
    steps += _beside(names - set(POST) if FIRST_IF_ONE.keys() & names else names)
    dropped = Counter(n for row in table.rows if isinstance(row, Mapping) for n in NOT_READ if row.get(n))
    notes = [f"{table.name}: the column {name} is not read ({count:,} rows have it)" for name, count in dropped.items()]
    if not steps:
        return Recognised(table, notes)
    rows = [_applied(row, [step for _, step in steps]) if isinstance(row, Mapping) else row for row in table.rows]
    found = dict.fromkeys(str(name) for row in rows if isinstance(row, Mapping) for name in row)
    notes += [f"{table.name}: {said}" for said, _ in steps if said]
    return Recognised(replace(table, columns=list(dict.fromkeys([*table.columns, *found])), rows=rows), notes)


def _applied(row: Row, steps: Sequence[Callable[[dict[str, Any]], None]]) -> Row | Skip | Malformed:
    made = dict(row)
    try:
        for step in steps:
            step(made)
    except (Skip, Malformed) as why:
        return why
    return made


def _first(names: set[str], of: Sequence[str]) -> str | None:
    return next((name for name in of if name in names), None)


# -- prompts -------------------------------------------------------------------------------------------


def _prompt(names: set[str], pairs: bool) -> list[tuple[str, Callable[[dict[str, Any]], None]]]:
    if (name := _first(names, CONVERSATIONS)) is not None and pairs:
        return [(f"prompts are the column {name}", lambda row: row.update(prompt=row[name]))]
    if (name := _first(names, INSTRUCTIONS)) is not None:
        beside = _first(names, ("input", "context"))
        also = f" and {beside}, a line apart" if beside else ""

        def instructed(row: dict[str, Any]) -> None:
            more = row.get(beside) if beside else None
            if row.get(name) is not None:
                row["prompt"] = f"{row[name]}\n{more}" if isinstance(more, str) and more.strip() else row[name]

        return [(f"prompts are the column {name}{also}", instructed)]
    if (name := _first(names, ("context", *(POST if FIRST_IF_ONE.keys() & names else ())))) is not None:
        return [(f"prompts are the column {name}", lambda row: row.update(prompt=row.get(name)))]
    return []


def _beside(names: set[str]) -> list[tuple[str, Callable[[dict[str, Any]], None]]]:
    """System prompts and earlier turns that stand in columns of their own."""
    system = _first(names, ("system", "system_prompt"))
    history = "history" if "history" in names else None
    if system is None and history is None:
        return []
    read = [name for name in (system, history) if name]
    told = f"the column{'s' if len(read) > 1 else ''} {' and '.join(read)} stand{'' if len(read) > 1 else 's'}"

    def joined(row: dict[str, Any]) -> None:
        said, before = row.get(system) if system else None, row.get(history) if history else None
        prompt = row.get("prompt")
        if prompt is None:
            return
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        earlier: list[Any] = []
        for turn in before or ():
            if isinstance(turn, Mapping):
                earlier.append(turn)
            elif isinstance(turn, Sequence) and not isinstance(turn, str) and len(turn) == 2:
                earlier += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
            else:
                raise Malformed("must be pairs of a question and an answer, or messages", column="history", value=turn)
        opening = [{"role": "system", "content": said}] if isinstance(said, str) and said.strip() else []
        row["prompt"] = [*opening, *earlier, *turns]

    return [(f"{told} before the prompts", joined)]


# -- answers -------------------------------------------------------------------------------------------


def _answers(names: set[str]) -> list[tuple[str, Callable[[dict[str, Any]], None]]]:
    responses = _first(names, RESPONSES)
    if responses is not None:
        return [_rated(responses, names)]
    for sides in SIDES:
        if set(sides) <= names and (step := _decided(sides, names)) is not None:
            return [step]
    steps: list[tuple[str, Callable[[dict[str, Any]], None]]] = []
    label = _first(names, (*LABELS, "label"))
    output = "completion" if "completion" in names else _first(names, OUTPUTS)
    whole = _first(names, CONVERSATIONS)
    if output is None and whole is not None:
        output = whole
    if output is None or (output == "completion" and label == "label"):
        return []
    if output == "response" and "prompt" not in names and not set(INSTRUCTIONS) & names:
        return []
    said = f"completions are the column {output}" if output != "completion" else ""
    steps.append((said, lambda row: row.update(completion=row.get(output))))
    if label is None and output == "completion":
        return []  # whoever has our own names may have forgotten one
    if label is None:
        steps.append(("no column is a label: all completions count as desirable", lambda row: row.update(label=True)))
    elif label != "label":
        steps.append((f"labels are the column {label}", lambda row: row.update(label=row.get(label))))
    return steps


def _rated(column: str, names: set[str]) -> tuple[str, Callable[[dict[str, Any]], None]]:
    """Several responses with a rating or a rank each: the best against the worst."""
    ranks, ratings = _first(names, RANKS), _first(names, RATINGS)

    def best_and_worst(row: dict[str, Any]) -> None:
        answers = row.get(column)
        if not isinstance(answers, Sequence) or isinstance(answers, str) or not len(answers):
            raise Malformed("must be a list of responses", column=column, value=answers)
        texts, values = [_text(a) for a in answers], [_value(a) for a in answers]
        beside = ratings or ranks
        if any(v is None for v in values) and beside is not None:
            marks = row.get(beside)
            if not isinstance(marks, Sequence) or len(marks) != len(texts):
                raise Malformed(f"must have one number for each of {len(texts)} {column}", column=beside, value=marks)
            values = [_number(m, beside) for m in marks]
            if beside == ranks:
                values = [-v for v in values]
        if any(v is None for v in values):
            raise Malformed(
                "has no ratings", column=column, value=answers[0], fix=f"add a list column {RATINGS[0]} or {RANKS[0]}"
            )
        order = sorted(range(len(texts)), key=lambda i: values[i])  # type: ignore[arg-type,return-value]
        if values[order[0]] == values[order[-1]]:
            raise Undecided(TIE)
        row["chosen"], row["rejected"] = texts[order[-1]], texts[order[0]]

    how = f"by {ratings or ranks}" if ratings or ranks else "by their own ratings"
    return f"of {column} the best and the worst {how} are a pair; ties are left out", best_and_worst


def _text(answer: Any) -> Any:
    """What an answer says, which may be a record with ratings beside it."""
    named = ("response", "text", "content", "completion", "answer", "output")
    return next((answer[k] for k in named if k in answer), None) if isinstance(answer, Mapping) else answer


def _value(answer: Any) -> float | None:
    """What an answer that is a record says of itself; higher is better."""
    if not isinstance(answer, Mapping):
        return None
    for name in ("overall_score", "score", "rating", "reward"):
        if answer.get(name) is not None:
            return _number(answer[name], name)
    return -_number(answer["rank"], "rank") if answer.get("rank") is not None else None


def _number(value: Any, column: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise Malformed("must be a number", column=column, value=value) from None


def _decided(sides: tuple[str, str], names: set[str]) -> tuple[str, Callable[[dict[str, Any]], None]] | None:
    """Two named responses, and what says which is better."""
    first, second = sides
    told = f"which of {first} and {second} is chosen; ties are left out"
    if (choice := FIRST_IF_ONE.get(first)) in names:
        return f"{choice} says {told}", _by_sign(sides, choice, lambda number: number - 0.5)
    if (choice := _first(names, CHOICES)) is not None:
        return f"{choice} says {told}", _compared(sides, choice)
    if (choice := _first(names, SIGNED)) is not None:
        return f"{choice} says {told}", _by_sign(sides, choice, lambda number: -number)
    for marks in marks_of(sides):
        if set(marks) <= names:
            return f"{marks[0]} and {marks[1]} say {told}", _by_marks(sides, marks)
    return None


def _by_sign(sides: tuple[str, str], choice: str, for_first: Callable[[float], float]) -> Callable[[Any], None]:
    def compare(row: dict[str, Any]) -> None:
        _choose(row, sides, for_first(_number(row.get(choice), choice)))

    return compare


def _by_marks(sides: tuple[str, str], marks: tuple[str, str]) -> Callable[[dict[str, Any]], None]:
    def compare(row: dict[str, Any]) -> None:
        first, second = (_number(row.get(mark), mark) for mark in marks)
        _choose(row, sides, first - second)

    return compare


def _choose(row: dict[str, Any], sides: tuple[str, str], for_first: float) -> None:
    """The first side is chosen where the number is above zero, the second where it is below."""
    if not for_first:
        raise Undecided(TIE)
    row["chosen"], row["rejected"] = (row.get(side) for side in (sides if for_first > 0 else sides[::-1]))


def _compared(sides: tuple[str, str], choice: str) -> Callable[[dict[str, Any]], None]:
    """Two named responses and a column that says which is better."""
    ends = [side[-1].lower() for side in sides]
    first, second = (
        {end, side.lower(), f"model_{end}", f"response_{end}"} for end, side in zip(ends, sides, strict=True)
    )

    def compare(row: dict[str, Any]) -> None:
        said = str(row.get(choice)).strip().lower().removesuffix(".0")
        if said.startswith("tie") or said in ("both", "none", "equal", "same"):
            raise Undecided(TIE)
        if said not in first | second:
            rule = f"must be {ends[0]} or {ends[1]} (or tie)"
            raise Malformed(rule, column=choice, value=row.get(choice))
        _choose(row, sides, 1 if said in first else -1)

    return compare


def _scored(high: str, low: str) -> Callable[[dict[str, Any]], None]:
    def check(row: dict[str, Any]) -> None:
        if row.get(high) is None or row.get(low) is None:
            return
        above, below = _number(row[high], high), _number(row[low], low)
        if above == below:
            raise Undecided(TIE)
        if above < below:
            raise Skip(WORSE)

    return check
