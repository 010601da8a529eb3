"""The embedded task: a small world whose true reward is known.

Prompts such as ``12+7=`` are answered by one of four behaviours: right and concise (``19``), right and
verbose (``well, the answer is 19.``), wrong (``17``), evasive (``i dont know.``). The base model learns the
mixture; alignment has to prefer some behaviours to others. Some prompts have no answer (``12+?=``), and for
them declining is right. Reversing and sorting letters are learned by the base and never aligned, so what
alignment forgets shows there. Sums of several operations (``steps``) are answered step by step (``arithmetic_steps``).
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt, Le, Lt

from harness.base.records import unless_default
from harness.tasks import arithmetic_steps as chains
from harness.tasks.base import Row, Score, TaskData
from harness.tasks.curating.applying import Curated, held_sifted, sifted

BEHAVIOURS = ("concise", "verbose", "wrong", "evasive")
DECLINE = "i dont know."
VERBOSE = "well, the answer is {}."
_VERBOSE = re.compile(r"^well, the answer is (.+)\.$")


@dataclass(frozen=True)
class Arithmetic(Curated):
    """Sums and differences with a known true reward; everything is made from ``seed``.

    Attributes:
        seed: governs data alone, so that training seeds of one recipe stay comparable.
        max_operand: the first operand runs from 0 to this number.
        max_second: the second operand runs from 0 to this number.
        pairs: preference pairs for alignment.
        eval_pairs: held-out pairs per split, labels clean.
        eval_prompts: held-out prompts per split.
        held_out: share of the prompts kept out of base training and alignment alike; half of them are the
            validation split (for tuning), half the test split.
        unanswerable: share of prompts that have no answer.
        label_noise: share of training pairs whose label is drawn from Bradley-Terry, P(chosen) =
            sigmoid(gap / noise_temperature), and not from the gap's sign.
        noise_temperature: scale of the reward gap in that draw, in units of reward.
        flipped: share of training pairs, chosen at random, whose sides are swapped: a regression planted on purpose.
        length_cost: true reward lost per character.
        mixture: weights of the behaviours concise, verbose, wrong, evasive in base training. With ``steps`` they are:
            every step right; a wrong step before the right answer; a wrong step that is carried on; evasive.
        mastery: share of base training, at its start, that shows right and concise answers alone: the skill is
            learned first, the mixture of behaviours after it.
        steps: operations of a sum. From two on completions show what is left after each (``12+7-3=`` -> ``19-3=16``),
            and which of these steps are right is known.
    """

    has_reward: ClassVar[bool] = True
    embedded: ClassVar[bool] = True
    knows_declining: ClassVar[bool] = True
    shape_rows: ClassVar[frozenset[str]] = Curated.shape_rows | {
        "seed", "max_operand", "max_second", "pairs", "eval_pairs", "eval_prompts", "held_out", "unanswerable",
        "label_noise", "noise_temperature", "flipped", "mixture", "mastery",
    }  # fmt: skip

    seed: Annotated[int, Ge(0)] = 0
    max_operand: Annotated[int, Ge(9), Le(99)] = 99
    max_second: Annotated[int, Ge(1), Le(99)] = 9
    pairs: Annotated[int, Gt(0)] = 6000
    eval_pairs: Annotated[int, Gt(0)] = 400
    eval_prompts: Annotated[int, Gt(0)] = 200
    held_out: Annotated[float, Gt(0), Lt(1)] = 0.2
    unanswerable: Annotated[float, Ge(0), Lt(1)] = 0.1
    label_noise: Annotated[float, Ge(0), Le(1)] = 0.1
    noise_temperature: Annotated[float, Gt(0)] = 0.5
    flipped: Annotated[float, Ge(0), Le(1)] = 0.0
    length_cost: Annotated[float, Ge(0)] = 0.02
    mixture: tuple[float, float, float, float] = (0.3, 0.25, 0.2, 0.25)
    mastery: Annotated[float, Ge(0), Le(1)] = 0.77
    steps: Annotated[int, Ge(1), Le(4)] = unless_default(1)

    @property
    def step_separator(self) -> str | None:
        """Sums of one operation have no steps."""
        return chains.SEPARATOR if self.steps > 1 else None

    def load(self) -> TaskData:
        """Make every row from the seed; takes about 0.3 s for the default sizes."""
        seen, splits = self._split()
        rng = random.Random(f"rows-{self.seed}")
        train_pairs = [self._pair(rng, self._draw(rng, seen), noisy=True) for _ in range(self.pairs)]
        swap = random.Random(f"flipped-{self.seed}")  # of its own, so that all else stays the same
        train_pairs = [_swapped(p) if swap.random() < self.flipped else p for p in train_pairs]
        train_prompts = [self._asked(self._draw(rng, seen)) for _ in range(self.pairs)]
        eval_pairs = {
            name: [self._pair(rng, self._draw(rng, rows), noisy=False) for _ in range(self.eval_pairs)]
            for name, rows in splits.items()
        }
        left = sifted(train_pairs, self.curate)
        eval_pairs, told = held_sifted(eval_pairs, self.curate)
        return TaskData(
            train_pairs=left.rows,
            train_prompts=train_prompts,
            eval_pairs=eval_pairs,
            eval_prompts={
                name: [self._asked(row) for row in self._balanced(rng, rows, self.eval_prompts)]
                for name, rows in splits.items()
            },
            retention=self._held_letters(),
            notes=[*left.notes, *told],
            curation=left.counts,
        )

    def base_recipe(self) -> dict[str, Any]:
        """Without what shapes pairs, held-out rows and rewards alone."""
        unread = ("pairs", "eval_pairs", "eval_prompts", "label_noise", "noise_temperature", "flipped", "length_cost",
                  "curate")  # fmt: skip
        unread += ("steps",) if self.steps == 1 else ()
        return {name: value for name, value in asdict(self).items() if name not in unread}

    def base_rows(self, count: int) -> list[Row]:
        """``count`` rows that the base model is trained on, in this order: skill first, then the mixture.

        Held-out prompts do not occur; a fifth of the rows are letter operations.
        """
        seen, _ = self._split()
        rng = random.Random(f"base-{self.seed}")
        held_letters = {row["prompt"] for row in self._held_letters()}
        rows: list[Row] = []
        for index in range(count):
            if rng.random() < 0.2:
                rows += _letter_rows(rng, 1, avoid=held_letters)
                continue
            row = self._draw(rng, seen)
            if index < self.mastery * count:
                behaviour = "evasive" if row["answer"] is None else "concise"
            else:
                behaviour = rng.choices(BEHAVIOURS, self.mixture)[0]
            rows.append({"prompt": row["prompt"], "completion": self._say(rng, row, behaviour)})
        return rows

    def declines(self, completion: str) -> bool:
        """Said in so many words."""
        return completion.strip() == DECLINE

    def answerable(self, row: Row) -> bool:
        """A prompt without an answer asks for something that does not exist."""
        return row["answer"] is not None

    def score(self, row: Row, completion: str) -> Score:
        """True reward: 1 if right, 0 if not, less ``length_cost`` per character.

        Right is the answer alone or the verbose sentence around it; for a prompt without an answer
        (``row["answer"] is None``) right is declining. Where steps are shown, the last one is the answer, and the
        others count by their length alone.
        """
        said = completion.rpartition(self.step_separator)[2] if self.step_separator else completion
        correct = self._right(row, said.strip())
        return Score(reward=float(correct) - self.length_cost * len(completion), correct=correct)

    def _right(self, row: Row, said: str) -> bool:
        verbose = _VERBOSE.match(said)
        answer = row["answer"]
        return said == DECLINE if answer is None else (verbose.group(1) if verbose else said) == answer

    def step_rows(self, split: str, count: int) -> list[Row]:
        """``count`` rows of ``prompt``, ``steps`` and ``labels``; those of the held-out splits have held-out prompts.

        The four behaviours are equally frequent, and a fifth of the completions show their last step alone. Where there
        is no answer, declining is the one right step.
        """
        seen, splits = self._split()
        rows, rng, found = {"train": seen, **splits}[split], random.Random(f"steps-{self.seed}-{split}"), []
        for _ in range(count):
            row = self._draw(rng, rows)
            said = self._say(rng, row, rng.choice(BEHAVIOURS)).split(chains.SEPARATOR)
            said = said[-1:] if rng.random() < 0.2 else said
            right = self._right(row, said[-1])
            hollow = row["answer"] is None
            labels = (
                [*[False] * (len(said) - 1), right] if hollow else chains.labels(row["prompt"], said, answered=right)
            )
            found.append({"prompt": row["prompt"], "steps": said, "labels": labels})
        return found

    # -- prompts ---------------------------------------------------------------------------------------

    def _split(self) -> tuple[list[dict[str, Any]], dict[str, list[dict[str, Any]]]]:
        """Prompts that training may see, and the held-out ones per split."""
        prompts = list(self._prompts())
        random.Random(f"split-{self.seed}").shuffle(prompts)
        cut = max(2, round(len(prompts) * self.held_out))
        return prompts[cut:], {"validation": prompts[: cut // 2], "test": prompts[cut // 2 : cut]}

    def _held_letters(self) -> list[Row]:
        return _letter_rows(random.Random(f"letters-{self.seed}"), 200)

    def _prompts(self) -> Iterator[dict[str, Any]]:
        """All prompts of this world; unanswerable ones hide an operand behind a question mark."""
        if self.steps > 1:
            share = self.unanswerable
            yield from chains.prompts(self.seed, self.steps, self.max_operand, self.max_second, share)
            return
        for a in range(self.max_operand + 1):
            for b in range(self.max_second + 1):
                yield {"prompt": f"{a}+{b}=", "answer": str(a + b)}
                if a >= b:
                    yield {"prompt": f"{a}-{b}=", "answer": str(a - b)}
        for a in range(self.max_operand + 1):
            for op in "+-":
                yield {"prompt": f"{a}{op}?=", "answer": None}
                yield {"prompt": f"?{op}{a}=", "answer": None}

    def _asked(self, row: Row) -> dict[str, Any]:
        """A prompt as tasks give it; of several operations with the right reply, to hold others against."""
        if self.steps == 1:
            return dict(row)
        right = DECLINE if row["answer"] is None else chains.SEPARATOR.join(chains.worked(row["prompt"]))
        return {**row, "worked": right}

    def _draw(self, rng: random.Random, rows: Sequence[Row]) -> Row:
        """One prompt, unanswerable with the configured probability."""
        hollow = rng.random() < self.unanswerable
        for _ in range(200):  # a tiny split may hold no prompt of the wanted kind
            row = rng.choice(rows)
            if (row["answer"] is None) == hollow:
                return row
        return rng.choice(rows)

    def _balanced(self, rng: random.Random, rows: Sequence[Row], count: int) -> list[Row]:
        """``count`` prompts without repeats while they last, with the configured share unanswerable."""
        shuffled = list(rows)
        rng.shuffle(shuffled)
        hollow = [r for r in shuffled if r["answer"] is None]
        solid = [r for r in shuffled if r["answer"] is not None]
        wanted = min(round(count * self.unanswerable), len(hollow))
        chosen = hollow[:wanted] + solid[: count - wanted]
        rng.shuffle(chosen)
        return chosen

    # -- completions -----------------------------------------------------------------------------------

    def _say(self, rng: random.Random, row: Row, behaviour: str) -> str:
        """What ``behaviour`` answers; for an unanswerable prompt a confident answer is made up."""
        if self.steps > 1:
            return self._say_steps(rng, row, behaviour)
        right = row["answer"] if row["answer"] is not None else str(rng.randint(0, self.max_operand))
        if behaviour == "evasive":
            return DECLINE
        if behaviour == "verbose":
            return VERBOSE.format(right)
        if behaviour == "concise":
            return right
        value = int(right)
        return str(value + 10 if value < 10 else value + rng.choice((-10, 10)))  # the carry slipped

    def _say_steps(self, rng: random.Random, row: Row, behaviour: str) -> str:
        if behaviour == "evasive":
            return DECLINE
        asked = chains.made_up(rng, row["prompt"], self.max_second)
        if behaviour == "concise":
            return chains.SEPARATOR.join(chains.worked(asked))
        return chains.SEPARATOR.join((chains.lucky if behaviour == "verbose" else chains.slipped)(rng, asked))

    def _pair(self, rng: random.Random, row: Row, *, noisy: bool) -> Row:
        """Two behaviours of one prompt, labelled by the true reward (Bradley-Terry where noisy)."""
        while True:
            first, second = (self._say(rng, row, b) for b in rng.sample(BEHAVIOURS, 2))
            gap = self.score(row, first).reward - self.score(row, second).reward
            if first != second and gap != 0:
                break
        prefer_first = gap > 0
        if noisy and rng.random() < self.label_noise:
            prefer_first = rng.random() < 0.5 * (1 + math.tanh(gap / self.noise_temperature / 2))  # sigmoid
        chosen, rejected = (first, second) if prefer_first else (second, first)
        return {"prompt": row["prompt"], "chosen": chosen, "rejected": rejected}


def _swapped(row: Row) -> Row:
    return {"prompt": row["prompt"], "chosen": row["rejected"], "rejected": row["chosen"]}


def _letter_rows(rng: random.Random, count: int, avoid: frozenset[str] | set[str] = frozenset()) -> list[Row]:
    """Reverse or sort three or four letters: ``rev cab=`` -> ``bac``, ``sort cab=`` -> ``abc``."""
    rows: list[Row] = []
    while len(rows) < count:
        word = "".join(rng.choices("abcdefgh", k=rng.choice((3, 4))))
        op = rng.choice(("rev", "sort"))
        prompt = f"{op} {word}="
        if prompt not in avoid:
            rows.append({"prompt": prompt, "completion": word[::-1] if op == "rev" else "".join(sorted(word))})
    return rows
