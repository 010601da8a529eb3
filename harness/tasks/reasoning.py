"""Procedural problems of the package reasoning-gym, with its own scorers as the true reward."""

from __future__ import annotations

import functools
import importlib.util
import json
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt

from harness.base.errors import UserError
from harness.tasks.base import Row, Score, Task, TaskData

LOOKED_AT = 5
"""Problems whose own answer must be right by the task's own scorer."""
SPARE = 3
"""Problems made for each one that is wanted, since some come twice."""
TAGS = "answer"
INSTALL = "pip install 'alignment-harness[real]' (in a checkout: pip install -c constraints.txt -e '.[real]')"


@dataclass(frozen=True)
class ReasoningGym(Task):
    """Prompts of one procedural task, made from a seed; online algorithms are paid by the task's own scorer.

    Of a completion the scorer sees what stands between the last ``<answer>`` and ``</answer>``, or all of it where
    there are no such tags.

    Attributes:
        name: of the task, such as ``chain_sum``; all are listed where one is unknown.
        prompts: to train on.
        eval_prompts: held out, for validation and for the test each.
        seed: of the problems.
        options: the task's own settings, such as ``{min_terms: 2, max_terms: 3}``.
        system_prompt: makes the prompts conversations that this message opens.
        length_cost: true reward lost per character.
    """

    has_reward: ClassVar[bool] = True
    shape_rows: ClassVar[frozenset[str]] = frozenset({"prompts", "eval_prompts", "seed", "system_prompt"})

    name: str
    prompts: Annotated[int, Gt(0)] = 1000
    eval_prompts: Annotated[int, Gt(0)] = 100
    seed: Annotated[int, Ge(0)] = 0
    options: dict[str, Any] = field(default_factory=dict)
    system_prompt: str | None = None
    length_cost: Annotated[float, Ge(0)] = 0.0

    def load(self) -> TaskData:
        """Make the problems; none is in two splits."""
        wanted = self.prompts + 2 * self.eval_prompts
        entries: dict[str, dict[str, Any]] = {}
        for entry in self._made(SPARE * wanted):
            entries.setdefault(entry["question"], entry)
            if len(entries) == wanted:
                break
        if len(entries) < wanted:
            raise UserError(
                f"{self.name} has {len(entries):,} different problems with these options, and {wanted:,} are wanted",
                key="task.prompts",
                value=self.prompts,
                fix="fewer task.prompts or task.eval_prompts, or task.options that make more of them",
            )
        rows = [self._row(entry) for entry in entries.values()]
        held, e = {"validation": rows[: self.eval_prompts]}, self.eval_prompts
        held["test"] = rows[e : 2 * e]
        train = rows[2 * e :]
        return TaskData(train_prompts=train, eval_prompts=held)

    def score(self, row: Row, completion: str) -> Score:
        """What the task's own scorer gives the answer, less ``length_cost`` per character; right where that is 1."""
        stated = answer_in(completion)
        scorer = _dataset(self.name, json.dumps(self.options), 1, self.seed)
        value = float(scorer.score_answer(stated, row["entry"]))
        return Score(reward=value - self.length_cost * len(completion), correct=value >= 1.0)

    def _made(self, size: int) -> list[dict[str, Any]]:
        """Problems, by a scorer that gives its own answers full marks."""
        if importlib.util.find_spec("reasoning_gym") is None:
            raise UserError(
                "the package reasoning-gym is not installed", key="task", value="reasoning_gym", fix=INSTALL
            )
        from reasoning_gym.factory import DATASETS

        if self.name not in DATASETS:
            known = ", ".join(sorted(DATASETS))
            raise UserError("no such task", key="task.name", value=self.name, fix=f"one of {known}")
        try:
            dataset = _dataset(self.name, json.dumps(self.options), size, self.seed)
            made = [dataset[i] for i in range(size)]
            scores = [float(dataset.score_answer(entry["answer"], entry)) for entry in made[:LOOKED_AT]]
        except Exception as error:  # of a stranger's generator
            words = " ".join(str(error).split())[:200]
            rule = f"the task cannot be made ({type(error).__name__}: {words})"
            raise UserError(rule, key="task.name", value=self.name, fix="another task, or task.options={...}") from None
        if min(scores) < 1.0:
            rule = (
                f"the task's own scorer gives its own answer {min(scores):g} of 1, so nothing could be learned from it"
            )
            raise UserError(rule, key="task.name", value=self.name, fix="another task")
        return made

    def _row(self, entry: dict[str, Any]) -> Row:
        prompt: Any = entry["question"]
        if self.system_prompt is not None:
            prompt = [{"role": "system", "content": self.system_prompt}, {"role": "user", "content": prompt}]
        return {"prompt": prompt, "answer": str(entry["answer"]), "entry": entry}


def answer_in(completion: str) -> str:
    """What stands between the last answer tags, or the whole without white space around it."""
    head, opened, tail = completion.rpartition(f"<{TAGS}>")
    if not opened:
        return completion.strip()
    return tail.partition(f"</{TAGS}>")[0].strip()


@functools.lru_cache(maxsize=8)
def _dataset(name: str, options: str, size: int, seed: int) -> Any:
    import reasoning_gym

    return reasoning_gym.create_dataset(name, size=size, seed=seed, **json.loads(options))
