"""An answer that stands somewhere in a long text: the user's documents, or needles at stated depths and lengths."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.base.errors import UserError
from harness.evaluators.base import EvalContext, Evaluation
from harness.evaluators.surfaces import (
    Match,
    Surface,
    answers_in,
    example_of,
    in_form,
    room_of,
    shares,
    states,
    text_in,
    tokens_of,
)
from harness.judges.base import filled
from harness.judges.yes_no import ENDING
from harness.tasks.base import Row, Text
from harness.tasks.reading.files import existing, fingerprint_of
from harness.tasks.reading.messages import Malformed
from harness.tasks.reading.rows import unescaped

TEMPLATE = "{document}\n\n{question}"
CHARACTERS = 16
"""Of a haystack for each token of the longest length: more than any tokenizer puts into one."""
TRIES = 8
WORD, BYTES, HALF = 40, 4, "\ufffd"
"""Characters of a word at most, tokens of a letter at most, and what stands for a part of one."""
QUESTION = f"""\
A user asked a question about a long text, which is not shown here. Does the reply give the right answer? The right \
answer is: {{answer}}

<question>
{{asked}}
</question>

<reply>
{{reply}}
</reply>

{ENDING}"""


@dataclass(frozen=True)
class Asked:
    """One prompt.

    Attributes:
        row: its place in the file.
        prompt: None where the length alone says that the model has no room for it.
        length: at most so many tokens, one of the lengths; None: more than any of them.
        depth: of the needle; None where the document is the row's own.
    """

    row: int
    prompt: str | None
    length: int | None
    depth: float | None = None


@dataclass(frozen=True)
class LongContext(Surface):
    """Accuracy by the length of the text that the answer stands in.

    A row has ``question``, ``answer`` (or ``answers``), and either its own ``document``, or a ``needle``, a sentence
    with the answer, which is put into the ``haystack`` at every depth of every length.

    Attributes:
        haystack: a file of text in UTF-8; null: every row has its document.
        lengths: of prompts, in tokens of the model's tokenizer. A prompt with a needle has a few less at most; one with
            a document counts for the smallest length that it does not exceed.
        depths: share of the haystack that stands before the needle.
        template: the prompt, of ``{document}`` and ``{question}``.
        match: how a reply states an answer, for ``by=rule``: ``contains``, ``exact`` or ``number`` (its last one).
    """

    label: str = "long_context"
    question: str = QUESTION
    haystack: str | None = None
    lengths: tuple[int, ...] = (1024, 4096, 16384)
    depths: tuple[float, ...] = (0.0, 0.5, 1.0)
    template: str = TEMPLATE
    match: Match = "contains"

    def __post_init__(self) -> None:
        """Check what fields demand of each other; ``ValueError`` is what ``build()`` collects."""
        super().__post_init__()
        if not self.lengths or min(self.lengths) < 1 or len(set(self.lengths)) < len(self.lengths):
            raise ValueError(f"lengths must be different numbers of tokens, not {list(self.lengths)}")
        if not self.depths or not all(0 <= depth <= 1 for depth in self.depths):
            raise ValueError(f"depths must lie between 0 and 1, not {list(self.depths)}")
        if "{document}" not in self.template or "{question}" not in self.template:
            raise ValueError("template must hold {document} and {question}")

    def parse(self, raw: Row) -> Row:
        """Question, answers, and the text or the needle."""
        source = "document" if self.haystack is None else "needle"
        if source not in raw:
            other = "or name a haystack for needles" if self.haystack is None else "or leave the haystack out"
            raise Malformed("is missing or empty", column=source, fix=f"give every row a {source}, {other}")
        return {"prompt": text_in(raw, "question"), "text": text_in(raw, source), "answers": answers_in(raw)}

    def contents(self) -> Mapping[str, str]:
        """Of both files."""
        if self.haystack is None:
            return super().contents()
        self._hay()
        return {**super().contents(), "haystack": fingerprint_of({f"{self.key}.haystack": self.haystack})}

    def lengths_of_own(self, tokens: Callable[[Text], int]) -> Sequence[int]:
        """With needles the lengths that are asked for; else those of the documents."""
        if self.haystack is not None:
            return self.lengths
        return [tokens(self._filled(row["text"], row["prompt"])) for row in self.rows()]

    def on_fixture(self, context: EvalContext, judge: str) -> tuple[Surface, EvalContext]:
        """At lengths that a toy has."""
        found, context = super().on_fixture(context, judge)
        room = room_of(context) or max(self.lengths)
        short = tuple(sorted({min(length, room) for length in self.lengths}))
        return replace(found, lengths=short), context  # type: ignore[call-arg]

    def _hay(self) -> str:
        """The beginning of the haystack, with single spaces."""
        key = f"{self.key}.haystack"
        try:
            text = existing(str(self.haystack), key).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            rule = f"the file is not UTF-8 ({error.reason} at byte {error.start})"
            raise UserError(rule, key=key, value=self.haystack, fix="write it in UTF-8, as plain text") from None
        words = " ".join(text[: 2 * CHARACTERS * max(self.lengths)].split())
        if not words:
            raise UserError("the file is empty", key=key, value=self.haystack, fix="name a file with a long text in it")
        return words[: CHARACTERS * max(self.lengths)]

    def evaluate(self, context: EvalContext) -> Evaluation:
        """Ask length by length, so that a batch holds prompts of similar length."""
        from harness.evaluators.scoring import share_with_bounds

        rows, lead, k = self.rows(), self.label, self.samples
        prompts, absent = self._prompts(context, rows)
        replies: list[tuple[Asked, Any]] = []
        asked: dict[int, None] = {}
        for length in (*sorted(self.lengths), None):
            texts = {i: one.prompt for i, one in enumerate(prompts) if one.length == length and one.prompt is not None}
            chosen, found = list(texts), self.sampled(context, list(texts.values())) if texts else {}
            asked |= dict.fromkeys(chosen[place] for place in found)
            replies += [(prompts[chosen[place]], one) for place, drawn in found.items() for one in drawn]
        cases = [
            {"reply": one.text, "asked": rows[a.row]["prompt"], "answer": " or ".join(rows[a.row]["answers"])}
            for a, one in replies
        ]
        said, metrics = self.decided(
            context, cases, lambda i: states(replies[i][1].text, rows[replies[i][0].row]["answers"], self.match)
        )
        metrics |= self.left_out(prompts, asked, context)
        columns: dict[str, tuple[list[str], list[float]]] = {}
        for i in range(0, len(replies), k):
            one, right = replies[i][0], shares(said[i : i + k])
            if right is None:
                continue
            for name in ("accuracy", *(() if one.length is None else (f"accuracy_{one.length}",))):
                names, values = columns.setdefault(f"{lead}/{name}", ([], []))
                names.append(example_of(rows[one.row]))
                values.append(right)
        for name, (names, values) in columns.items():
            metrics |= share_with_bounds(name, values, names, draws=k)
        for length in self.lengths:
            absent.setdefault(f"{lead}/accuracy_{length}", self._why(context, prompts, length))
        absent |= {f"{lead}/accuracy": "no prompt of the file was short enough for the model"}
        table = [
            {"length": a.length, "depth": a.depth, "right": s, "question": rows[a.row]["prompt"], "completion": r.text}
            for (a, r), s in zip(replies, said, strict=True)
        ]
        return self.finding(metrics, examples=_apart(columns), table=table, wanted=absent)

    def _why(self, context: EvalContext, prompts: Sequence[Asked], length: int) -> str:
        if not any(one.length == length for one in prompts):
            return f"the file has no prompt of this length ({length} tokens)"
        return f"the model's context leaves a prompt {room_of(context)} tokens beside a completion"

    def _prompts(self, context: EvalContext, rows: Sequence[Row]) -> tuple[list[Asked], dict[str, str]]:
        """Every prompt, and why a length has none."""
        lengths = sorted(self.lengths)
        if self.haystack is None:
            texts = [self._filled(row["text"], row["prompt"]) for row in rows]
            counts = tokens_of(context, in_form(context, texts), f"{self.key}.path")
            fitting = [next((length for length in lengths if count <= length), None) for count in counts]
            return [Asked(i, t, n) for i, (t, n) in enumerate(zip(texts, fitting, strict=True))], {}
        room = room_of(context)
        hay: list[int] = context.tokenizer(self._hay(), add_special_tokens=False, verbose=False)["input_ids"]
        found: list[Asked] = []
        absent: dict[str, str] = {}
        for length in lengths:
            name = f"{self.label}/accuracy_{length}"
            if room is not None and length > room:  # counted as too long, and never rendered
                found += [Asked(i, None, length, depth) for i in range(len(rows)) for depth in self.depths]
                absent[name] = f"the model's context leaves a prompt {room} tokens beside a completion"
                continue
            made = [self._planted(context, hay, i, row, length, d) for i, row in enumerate(rows) for d in self.depths]
            if len(hay) < length:
                absent[name] = f"the haystack has {len(hay)} tokens, which are too few for prompts of {length}"
            elif None in made:
                absent[name] = f"a question and its needle alone have more than {length} tokens"
            else:
                found += [one for one in made if one is not None]
        return found, absent

    def _planted(
        self, context: EvalContext, hay: Sequence[int], place: int, row: Row, length: int, depth: float
    ) -> Asked | None:
        """The needle in the haystack, the whole prompt of ``length`` tokens or a few less; None where it has no room.

        Text that is cut between two tokens may be read as more tokens than it was, so it is counted again.
        """
        if len(hay) < length:
            return None

        def prompt(document: str) -> str:
            return self._filled(document, row["prompt"])

        def count(text: str) -> int:
            return tokens_of(context, in_form(context, [text]), f"{self.key}.path")[0]

        room = length - count(prompt(row["text"]))
        for _ in range(TRIES):
            if room < 0:
                return None
            text = prompt(_around(context.tokenizer, hay[:room], depth, row["text"]))
            if (excess := count(text) - length) <= 0:
                return Asked(place, text, length, depth)
            room -= excess
        return None

    def _filled(self, document: str, question: str) -> str:
        return filled(str(unescaped(self.template)), {"document": document, "question": question})


def _around(tokenizer: Any, hay: Sequence[int], depth: float, needle: str) -> str:
    """The needle between two parts of a text, which are cut between words where these are parted by spaces."""

    def cut(at: int) -> tuple[str, str]:
        before, after = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (hay[:at], hay[at:]))
        return str(before), str(after)

    at = round(len(hay) * depth)
    places = [at - k for k in range(min(at, BYTES))] or [at]
    halves = (cut(place) for place in places)  # a token may be a part of a letter
    whole_letters = (h for h in halves if not h[0].endswith(HALF) and not h[1].startswith(HALF))
    before, after = next(whole_letters, None) or cut(at)
    whole = before.rfind(" ", max(0, len(before) - WORD))
    if after and not after.startswith(" ") and whole >= 0:
        before, after = before[:whole], before[whole + 1 :] + after
    return " ".join(part for part in (before.strip(), needle, after.strip()) if part)


def _apart(columns: Mapping[str, tuple[list[str], list[float]]]) -> dict[str, tuple[list[str], list[float]]]:
    """A value per row of the file: a row that is asked at several lengths or depths has their mean."""
    found = {}
    for name, (names, values) in columns.items():
        by_row: dict[str, list[float]] = {}
        for row, value in zip(names, values, strict=True):
            by_row.setdefault(row, []).append(value)
        found[name] = (list(by_row), [sum(v) / len(v) for v in by_row.values()])
    return found
