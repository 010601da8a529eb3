"""A task that fills its rows by itself."""

from dataclasses import dataclass
from typing import ClassVar

from harness.tasks.base import Score, Task, TaskData


@dataclass(frozen=True)
class Echo(Task):
    """Say the number."""

    has_reward: ClassVar[bool] = True

    rows: int = 60

    def load(self):
        """Numbers and their reverse."""
        numbers = [str(1000 + 37 * i) for i in range(self.rows + 40)]
        pairs = [{"prompt": f"{n}=", "chosen": n, "rejected": n[::-1] + "0", "answer": n} for n in numbers]
        train, validation, test = pairs[:-40], pairs[-40:-20], pairs[-20:]
        held_out = {"validation": validation, "test": test}
        return TaskData(train_pairs=train, train_prompts=train, eval_pairs=held_out, eval_prompts=held_out)

    def score(self, row, completion):
        """The share of digits in place."""
        right = sum(a == b for a, b in zip(row["answer"], completion, strict=False))
        return Score(reward=right / len(row["answer"]), correct=completion == row["answer"])
