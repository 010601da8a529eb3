"""Several turns, asked one after another with the model's own replies between them, each checked by rule or judge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.evaluators.base import EvalContext, Evaluation
from harness.evaluators.surfaces import Surface, example_of, shares, states, text_in
from harness.judges.base import spoken
from harness.judges.yes_no import ENDING
from harness.tasks.base import Row, text_of
from harness.tasks.judging import patterns
from harness.tasks.reading.messages import Malformed

CHECKS = ("contains", "excludes", "regex")
"""What a turn's reply is held against by the rule."""
EXAMPLE = '{"user": "My name is Ada."}, {"user": "What is my name?", "contains": "Ada", "expect": "It says Ada."}'
QUESTION = f"""\
Below is a conversation with an assistant, and its last reply. Does the last reply fulfil what is expected of it? \
Expected is: {{expect}}

<conversation>
{{prompt}}
</conversation>

<reply>
{{reply}}
</reply>

{ENDING}"""


@dataclass(frozen=True)
class Conversations(Surface):
    """Share of checked turns that pass, of conversations of which all do, and the share turn by turn.

    A row has ``turns``, a list: each has ``user`` and may have checks of the reply, which must all hold:
    ``contains`` (a text or a list of which one must stand in it), ``excludes`` (none may) and ``regex`` for
    ``by=rule``, ``expect`` in words for ``by=judge``. A turn without a check is only talked through. A row may have a
    ``system`` message.
    """

    label: str = "conversations"
    question: str = QUESTION

    def parse(self, raw: Row) -> Row:
        """Turns and their checks, of which ``by`` must have one."""
        value = raw.get("turns")
        if not isinstance(value, list) or not value:
            raise Malformed("must be a list of turns", column="turns", value=value, fix=f'"turns": [{EXAMPLE}]')
        turns = [self._turn(turn, f"turns[{number}]") for number, turn in enumerate(value)]
        if not any(self._checked(turn) for turn in turns):
            wanted = "expect" if self.by == "judge" else ", ".join(CHECKS)
            rule = f"hold no check for by={self.by}: no turn has one of {wanted}"
            raise Malformed(rule, column="turns", value=value, fix=f'"turns": [{EXAMPLE}]')
        system = text_in(raw, "system") if "system" in raw else None
        return {"prompt": turns[0]["user"], "turns": turns, "system": system}

    def _turn(self, turn: Any, column: str) -> dict[str, Any]:
        if isinstance(turn, str):
            return {"user": text_in({"user": turn}, "user")}
        if not isinstance(turn, Mapping):
            raise Malformed("must be text or an object", column=column, value=turn, fix=EXAMPLE)
        if odd := sorted(set(turn) - {"user", "expect", *CHECKS}):
            known = ", ".join(("user", "expect", *CHECKS))
            raise Malformed(f"has the unknown key {odd[0]}", column=column, value=turn, fix=f"known: {known}")
        found: dict[str, Any] = {"user": text_in(turn, "user")}
        for name in ("expect", "regex"):
            if turn.get(name) is not None:
                found[name] = text_in(turn, name)
        if "regex" in found and (wrong := patterns.problem(found["regex"])) is not None:
            raise Malformed(f"is no regular expression: {wrong}", column=f"{column}.regex", value=found["regex"])
        for name in ("contains", "excludes"):
            if turn.get(name) is not None:
                listed = turn[name] if isinstance(turn[name], list) else [turn[name]]
                found[name] = [text_in({name: one}, name) for one in listed] or [text_in({}, name)]
        return found

    def _checked(self, turn: Mapping[str, Any]) -> bool:
        return "expect" in turn if self.by == "judge" else any(name in turn for name in CHECKS)

    def evaluate(self, context: EvalContext) -> Evaluation:
        """Talk all conversations through, turn by turn, and then look at the replies."""
        from harness.evaluators.scoring import share_with_bounds

        rows, lead, k = self.rows(), self.label, self.samples
        talks = [(place, _opened(row)) for place, row in enumerate(rows) for _ in range(k)]
        told: list[tuple[int, int, Any, str]] = []  # talk, turn, what the model was asked, reply
        cut: set[int] = set()
        for turn in range(max(len(row["turns"]) for row in rows)):
            going = [i for i, (place, _) in enumerate(talks) if turn < len(rows[place]["turns"]) and i not in cut]
            for i in going:
                talks[i][1].append({"role": "user", "content": rows[talks[i][0]]["turns"][turn]["user"]})
            replies = self._replies(context, [list(talks[i][1]) for i in going], first=turn == 0)
            cut |= {i for place, i in enumerate(going) if place not in replies}
            for place, reply in replies.items():
                history = talks[going[place]][1]
                told.append((going[place], turn, list(history), reply))
                history.append({"role": "assistant", "content": spoken(reply)})
        looked = [one for one in told if self._checked(rows[talks[one[0]][0]]["turns"][one[1]])]
        turns = [rows[talks[talk][0]]["turns"][turn] for talk, turn, *_ in looked]
        cases = [
            {"prompt": _transcript(asked), "reply": spoken(reply), "expect": turn.get("expect", "")}
            for (_, _, asked, reply), turn in zip(looked, turns, strict=True)
        ]
        said, metrics = self.decided(context, cases, lambda i: _holds(turns[i], looked[i][3]))
        metrics |= self.left_out(talks, {i: None for i in range(len(talks)) if i not in cut}, context)

        values: list[tuple[int, int, float]] = []  # row, turn, passed
        by_talk: dict[int, list[bool | None]] = {}
        for (talk, turn, *_), passed in zip(looked, said, strict=True):
            by_talk.setdefault(talk, []).append(passed)
            if passed is not None:
                values.append((talks[talk][0], turn, float(passed)))
        names = {place: example_of(row) for place, row in enumerate(rows)}
        metrics |= share_with_bounds(f"{lead}/passed", [v for *_, v in values], [names[p] for p, *_ in values])
        for turn in sorted({turn for _, turn, _ in values}):
            own = [(names[place], value) for place, at, value in values if at == turn]
            metrics |= share_with_bounds(f"{lead}/turn_{turn + 1}", [v for _, v in own], [n for n, _ in own])
        whole: tuple[list[str], list[float]] = ([], [])
        for place in range(len(rows)):
            ends = [_all(by_talk.get(i)) for i in range(place * k, (place + 1) * k) if i not in cut]
            if (share := shares(ends)) is not None:
                whole[0].append(names[place])
                whole[1].append(share)
        metrics |= share_with_bounds(f"{lead}/whole", whole[1], whole[0], draws=k)
        table = [
            {"conversation": talks[talk][0] + 1, "turn": turn + 1, "passed": passed, "prompt": text_of(asked[-1:]),
             "completion": reply}
            for (talk, turn, asked, reply), passed in zip(looked, said, strict=True)
        ]  # fmt: skip
        absent = {
            f"{lead}/passed": "no checked turn has a reply that can be read",
            f"{lead}/whole": "no conversation came to its end with replies that can be read",
        }
        examples = {f"{lead}/whole": whole} if whole[0] else {}
        return self.finding(metrics, examples=examples, table=table, wanted=absent)

    def _replies(self, context: EvalContext, histories: list[Any], *, first: bool) -> dict[int, str]:
        """A reply for each history, by its place; one that the model's context has no room for has none.

        At first all samples of a row have one history, so that as many are drawn of it. From then on each has its own.
        """
        from dataclasses import replace

        k = self.samples
        if not first or k == 1:
            alone = self if k == 1 else replace(self, samples=1)
            return {place: drawn[0].text for place, drawn in alone.sampled(context, histories).items()}
        found = self.sampled(context, histories[::k])
        return {place * k + j: one.text for place, drawn in found.items() for j, one in enumerate(drawn)}


def _opened(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """A conversation before its first turn."""
    return [] if row["system"] is None else [{"role": "system", "content": row["system"]}]


def _transcript(messages: list[Any]) -> str:
    return "\n\n".join(f"{m['role']}: {m['content']}" for m in messages)


def _all(passed: list[bool | None] | None) -> bool | None:
    """Whether all checks of a conversation hold: one that fails decides, and one that cannot be read leaves it open."""
    if passed is None:
        return None
    return False if False in passed else None if None in passed else True


def _holds(turn: Mapping[str, Any], reply: str) -> bool:
    """Whether every check of a turn holds for a reply."""
    said = spoken(reply)
    if "contains" in turn and not states(said, turn["contains"], "contains"):
        return False
    if "excludes" in turn and states(said, turn["excludes"], "contains"):
        return False
    return "regex" not in turn or patterns.matches(turn["regex"], said)
