"""What evaluators over a user's own file of prompts share: rows, samples, and how a reply is decided. No torch.

docs/surfaces.md has the formats of the files, and how each of these evaluators can mislead.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt

from harness.base.errors import UserError
from harness.config import identity
from harness.evaluators.base import EvalContext, Evaluation, Evaluator
from harness.judges.base import Judge, Longer, filled, shown, spoken
from harness.models.base import context_length
from harness.tasks.base import Row, Text, text_of
from harness.tasks.judging.answers import same_answer, stated_answer
from harness.tasks.reading.checking import check
from harness.tasks.reading.files import fingerprint_of, read_table
from harness.tasks.reading.messages import Malformed, decoded, message

if TYPE_CHECKING:
    from harness.evaluators.scoring import Sample
    from harness.judges.asking import Bill
    from harness.rewards.judged import JudgeReward

NAME = re.compile(r"[\w\-]+", re.ASCII)
"""Names that can stand in a metric's."""
MOST_TOKENS = 2**15
"""Tokens of all rows of a batch. Its mask takes rows x width x width bytes and the layers' activations grow with the
tokens: at 8B and 4,096 tokens that is eight rows."""
UNSPACED = "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]"
"""Letters of scripts that do not part words, or particles from them, by spaces."""
FIXTURE_ROWS = 6
TABLE_ROWS = 24
Match = Literal["contains", "exact", "number"]
"""How a reply states an answer: it stands in it as whole words, it is the whole reply, or it is its last number."""


@dataclass(frozen=True)
class Surface(Evaluator):
    """Asks every model the prompts of a file, the same in each trial, and decides each reply by a rule or a judge.

    Attributes:
        path: the file, by suffix: .jsonl, .json, .parquet, .csv or .tsv.
        label: stands before the metrics' names (``LABEL/...``); two evaluators of one kind need two.
        by: who decides: a rule, or the judge, who is asked ``question`` about each reply.
        judge: answers yes or no; an answer that cannot be read is counted and never guessed.
        question: what the judge is asked, of ``{prompt}``, ``{reply}`` and what the evaluator says.
        samples: replies per prompt.
        temperature: of sampling; 0 is greedy.
        max_rows: at most this many rows, from the top of the file; null takes all.
    """

    path: str
    label: str
    question: str
    by: Literal["rule", "judge"] = "rule"
    judge: Judge = field(default_factory=Longer)
    samples: Annotated[int, Gt(0)] = 1
    temperature: Annotated[float, Ge(0)] = 0.0
    max_rows: Annotated[int, Gt(0)] | None = None

    def __post_init__(self) -> None:
        """Check what fields demand of each other; ``ValueError`` is what ``build()`` collects."""
        if not NAME.fullmatch(self.label):
            raise ValueError(f"label must be of letters, digits, _ and -, not {self.label!r}")
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(f"samples={self.samples} at temperature 0 are all the same: samples=1, or temperature=1")
        if self.by == "judge" and not self.judge.writes:
            kind = type(self.judge).__name__
            raise ValueError(f"by=judge wants a judge that answers in words (judge=served), and {kind} only compares")
        if self.by == "judge" and "{reply}" not in self.question:
            raise ValueError("question must hold {reply}, or the judge sees none")

    def problems(self) -> list[UserError]:
        """Its judge's, where one is asked."""
        return self.judge.problems() if self.by == "judge" else []

    @property
    def judge_model(self) -> JudgeReward | None:
        """Its judge, where one is asked that is held on the trial's device."""
        from harness.rewards.judged import JudgeReward

        return JudgeReward.held(self.judge) if self.by == "judge" else None

    @property
    def key(self) -> str:
        """Of its settings, for messages; its name is taken to be its label."""
        return f"eval.evaluators.{self.label}"

    @abstractmethod
    def parse(self, raw: Row) -> Row:
        """One row as it is used, with its ``prompt``; raises ``Malformed``."""

    def rows(self) -> list[Row]:
        """All rows of the file in its order, each once.

        Raises:
            UserError: the file is missing, empty or cannot be read; rows that break a rule, with line, column and fix.
        """
        table = read_table(self.path, key=f"{self.key}.path", max_rows=self.max_rows)
        encoded = table.encoded

        def parsed(raw: Row) -> Row:
            cells = {k: decoded(v, str(k)) if encoded and isinstance(v, str) else v for k, v in raw.items()}
            row = self.parse({k: v for k, v in cells.items() if v is not None and v != "" and v == v})
            return {**row, "asked": row["prompt"], "prompt": ""}  # text and messages may stand in one file

        found = [{**row, "prompt": row["asked"]} for row in check(table, "prompts", parsed, allow_skipped=0).rows]
        return list({example_of(row): row for row in found}.values())

    def contents(self) -> Mapping[str, str]:
        """Of the file, whose rows are checked here, before anything trains; and what a judge's answers depend on."""
        self.rows()
        judge = {"judge": self.judge.settled().key} if self.by == "judge" else {}
        return {"path": fingerprint_of({f"{self.key}.path": self.path}), **judge}

    def asks(self) -> Sequence[str]:
        """Of every row."""
        return [text_of(row["prompt"]) for row in self.rows()]

    def lengths_of_own(self, tokens: Callable[[Text], int]) -> Sequence[int]:
        """Of every row."""
        return [tokens(row["prompt"]) for row in self.rows()]

    def on_fixture(self, context: EvalContext, judge: str) -> tuple[Surface, EvalContext]:
        """On the first rows, by the rule: asking a judge costs."""
        few = min(self.max_rows or FIXTURE_ROWS, FIXTURE_ROWS)
        return replace(self, by="rule", judge=Longer(), max_rows=few), context

    # -- asking ----------------------------------------------------------------------------------------

    def sampled(self, context: EvalContext, prompts: Sequence[Text]) -> dict[int, list[Sample]]:
        """Replies to prompts, by the place of the prompt; one that the model's context has no room for has none.

        They are drawn once for all evaluators that ask the same, and of the base once for all trials.
        """
        from harness.evaluators.scoring import SAMPLES, sample

        rendered = in_form(context, prompts)
        room = room_of(context)
        lengths = tokens_of(context, rendered, f"{self.key}.path")
        fits = [i for i, n in enumerate(lengths) if room is None or n <= room]
        if not fits:
            return {}
        asked = [rendered[i] for i in fits]
        longest = max(lengths[i] for i in fits) + context.max_completion_length
        at_once = prompts_at_once(context.batch_size, longest)

        def drawn() -> list[Sample]:
            own = replace(context, batch_size=at_once)
            return sample(own, asked, per_prompt=self.samples, temperature=self.temperature)

        key = (SAMPLES, "of a file", identity.digest(asked), self.samples, self.temperature, at_once)
        found = context.memo.once(key, drawn)
        return {place: list(found[i * self.samples : (i + 1) * self.samples]) for i, place in enumerate(fits)}

    def decided(
        self, context: EvalContext, cases: Sequence[Mapping[str, str]], rule: Callable[[int], bool]
    ) -> tuple[list[bool | None], dict[str, float]]:
        """Yes or no for each case, None where the judge's answer cannot be read, and metrics of the judging.

        Args:
            context: where answers are kept.
            cases: what the question is filled with, a reply each.
            rule: decides a case by its place.
        """
        if self.by == "rule":
            return [rule(i) for i in range(len(cases))], {}
        from harness.judges.asking import answered
        from harness.judges.yes_no import yes

        bill: Bill
        answers, bill = answered(
            self.judge, [filled(self.question, case) for case in cases], context.cache, context.progress
        )
        said = [yes(answer) for answer in answers]
        metrics = {f"{self.label}/{name}": value for name, value in bill.metrics(self.judge).items()}
        if said:
            metrics[f"{self.label}/judge_unreadable"] = sum(s is None for s in said) / len(said)
        return said, metrics

    def case(self, prompt: Text, sample: Sample, **more: str) -> dict[str, str]:
        """What a judge is shown of a reply."""
        return {"prompt": shown(prompt), "reply": spoken(sample.text), **more}

    def left_out(self, rows: Sequence[Any], asked: Mapping[int, Any], context: EvalContext) -> dict[str, float]:
        """How many rows were too long to be asked."""
        return {f"{self.label}/too_long": float(len(rows) - len(asked))}

    def finding(
        self,
        metrics: Mapping[str, float],
        *,
        examples: Mapping[str, tuple[Sequence[str], Sequence[float]]],
        table: Sequence[Mapping[str, Any]],
        wanted: Mapping[str, str],
        notes: Sequence[str] = (),
    ) -> Evaluation:
        """The evaluation.

        Args:
            metrics: with their whole names.
            examples: metric -> names of examples, and their values.
            table: replies to be read, of which the first are kept.
            wanted: metric -> why it is absent, where it is.
            notes: what a reader should know.
        """
        cut = metrics.get(f"{self.label}/too_long", 0.0)
        said = [*notes, *([f"{self.label}: {cut:.0f} prompts are longer than the model's context"] if cut else [])]
        if (lost := metrics.get(f"{self.label}/judge_unreadable", 0.0)) > 0.05:
            said.append(f"{self.label}: {lost:.0%} of the judge's answers cannot be read; they count for nobody")
        return Evaluation(
            metrics,
            tables={self.label: list(table)[:TABLE_ROWS]},
            examples={name.replace("/", "_"): {"example": list(e), name: list(v)} for name, (e, v) in examples.items()},
            absent={name: why for name, why in wanted.items() if name not in metrics},
            notes=said,
        )


# -- prompts -------------------------------------------------------------------------------------------


def in_form(context: EvalContext, prompts: Sequence[Text]) -> list[Text]:
    """Prompts as the model wants them, with what stands before every prompt of the policy.

    Without a chat template one user turn is its text, and several turns are a transcript.
    """
    chat = not isinstance(context.rows([{"prompt": "a"}])[0]["prompt"], str)
    rows = [{"prompt": prompt if chat else as_text(prompt)} for prompt in prompts]
    return [row["prompt"] for row in context.rows(rows)]


def as_text(prompt: Text) -> str:
    """Messages as a text that a model without a template continues with its reply."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and prompt[0]["role"] == "user":
        return str(prompt[0]["content"])
    return "".join(f"{m['role']}: {m['content']}\n" for m in prompt) + "assistant:"


def prompts_at_once(batch_size: int, longest: int) -> int:
    """Rows of a batch of which the longest has so many tokens, completion included."""
    return min(batch_size, max(1, MOST_TOKENS // longest))


def room_of(context: EvalContext) -> int | None:
    """Tokens that a prompt may have beside a completion in the model's context; None where it has no limit."""
    config = getattr(context.model, "config", None)
    limit = None if config is None else context_length(config)
    return None if limit is None else limit - context.max_completion_length


def tokens_of(context: EvalContext, rendered: Sequence[Text], key: str) -> list[int]:
    """Tokens of prompts in the model's form.

    Raises:
        UserError: the chat template refuses one.
    """
    from harness.tasks.conversation import prompt_ids

    try:
        return [len(ids) for ids in prompt_ids(context.tokenizer, rendered)]
    except Exception as error:  # Jinja's kinds, and whatever Python raises in the middle of a stranger's template
        rule = f"the tokenizer's chat template refuses a prompt of the file ({type(error).__name__}: {error})"
        raise UserError(rule, key=key, fix="write its turns in the order that the template wants") from None


def example_of(row: Row) -> str:
    """What names a row in all trials: a digest of everything in it, and its first words."""
    words = " ".join(text_of(row["prompt"]).split())
    return f"{identity.digest(row, 8)} {words[:60]}"


# -- cells ---------------------------------------------------------------------------------------------


def prompt_in(raw: Mapping[str, Any], *columns: str) -> Text:
    """A prompt from the first of these columns that is there: text, or messages whose last is the user's."""
    name = next((c for c in columns if c in raw), None)
    if name is None:
        found = ", ".join(map(str, raw)) or "none"
        raise Malformed(f"is missing or empty; found: {found}", column=columns[0], fix=f"give every row a {columns[0]}")
    value = raw[name]
    if isinstance(value, str) and value.strip():
        return value
    if not isinstance(value, list) or not value:
        fix = '"Hello", or [{"role": "user", "content": "Hello"}]'
        raise Malformed("must be text or a list of messages, with something in it", column=name, value=value, fix=fix)
    from collections import Counter

    turns = [message(item, name, Counter()) for item in value]
    if turns[-1]["role"] in ("assistant", "system", "developer"):
        fix = "leave out what comes after the last user turn"
        raise Malformed("must end with a turn of the user, whom the model answers", column=name, value=value, fix=fix)
    return turns


def text_in(raw: Mapping[str, Any], column: str) -> str:
    """A text that must be there; numbers are taken as text."""
    value = raw.get(column)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    if not isinstance(value, str) or not value.strip():
        raise Malformed("must be text, with something in it", column=column, value=value, fix=f"give it a {column}")
    return value


def answers_in(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """The right answers: ``answers``, a list, or ``answer``, a text, a number or a list."""
    name = "answers" if "answers" in raw else "answer"
    value = raw.get(name)
    listed = value if isinstance(value, list) else [value]
    return tuple(text_in({name: one}, name) for one in listed) if listed else (text_in({}, name),)


def name_in(raw: Mapping[str, Any], column: str) -> str | None:
    """A name that becomes part of a metric's; None where there is none."""
    if column not in raw:
        return None
    if not NAME.fullmatch(value := str(raw[column])):
        fix = re.sub(r"[^\w\-]+", "_", value, flags=re.ASCII)
        raise Malformed("names metrics, so it must be of letters, digits, _ and -", column=column, value=value, fix=fix)
    return value


# -- replies -------------------------------------------------------------------------------------------


def plain(text: str) -> str:
    """Words to be compared: lower case, straight apostrophes, single spaces."""
    return " ".join(text.replace("’", "'").casefold().split())


def states(reply: str, answers: Sequence[str], match: Match) -> bool:
    """Whether a reply states one of some answers; any other words beside it do not matter to ``contains``."""
    said = spoken(reply)
    if match == "number":
        stated = stated_answer(said)
        return stated is not None and any(same_answer(stated, answer) for answer in answers)
    if match == "exact":
        return any(plain(said).rstrip(".! ") == plain(answer).rstrip(".! ") for answer in answers)
    return any(_stands(plain(a), plain(said)) for a in answers)


def _stands(answer: str, said: str) -> bool:
    """Whether an answer stands in words: not within another word or number, where its script parts words by spaces."""
    before = "" if re.match(UNSPACED, answer) else r"(?<!\w)(?<!\d[.,])" + r"(?<![\s(]-)(?<!^-)" * answer[:1].isdigit()
    after = "" if re.search(rf"{UNSPACED}\Z", answer) else r"(?!\w)(?![.,]\d)"
    return re.search(before + re.escape(answer) + after, said) is not None


def shares(values: Sequence[bool | None]) -> float | None:
    """The share of what could be read; None where nothing could."""
    read = [v for v in values if v is not None]
    return sum(read) / len(read) if read else None
