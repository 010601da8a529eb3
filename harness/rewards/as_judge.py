"""``judge=reward_model``: a reward model as a judge, so that it stands beside others and beside people in one table."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from annotated_types import Gt

from harness.base.errors import UserError
from harness.base.records import UNTOLD, unless_default
from harness.config import closure, identity
from harness.config.devices import compute_device
from harness.judges.base import Answer, Answering, Comparing, Pair, compared_in
from harness.rewards.base import Desk, ScoreFunction
from harness.rewards.model import ModelReward
from harness.tasks.base import Text

MESSAGES = "Which of two replies is better? Prompt and replies, as messages or text:"
"""Begins the question about a conversation; what follows is JSON."""


@dataclass(frozen=True)
class RewardModel(Comparing):
    """Takes the reply with the higher score; it reads prompt and replies, and no question.

    Attributes:
        path: directory or hub id of a sequence-classification model with one label.
        revision: hub revision.
        trust_remote_code: run code that ships with the model; off unless asked for.
        max_length: tokens of prompt and reply that it reads, from the end.
        batch_size: replies at once.
    """

    path: str = field(kw_only=True)
    revision: str | None = unless_default(None)
    trust_remote_code: bool = False
    max_length: Annotated[int, Gt(0)] = 4096
    batch_size: Annotated[int, Gt(0)] = field(default=16, metadata=UNTOLD)

    @property
    def identity(self) -> Mapping[str, Any]:
        """The model's content, what computes it, and the code that reads it."""
        return {
            "model": identity.model_content(self.path, self.revision),
            "max_length": self.max_length,
            "device": compute_device("auto"),
            "versions": identity.library_versions(),
            "reading": closure.code_digest(closure.closure([__name__])),
        }

    def asks(self, pair: Pair) -> str:
        """The usual question; of a conversation its messages, which the model's own template renders."""
        if pair.whole is None:
            return super().asks(pair)
        return f"{MESSAGES}\n{json.dumps(pair.whole)}"

    def settled(self) -> RewardModel:
        """With the commit of a hub model as its revision."""
        return replace(self, revision=identity.pinned(self.path, self.revision, key="judge.path"))

    def answers(self, questions: Sequence[str], told: Callable[[int, Answer], None]) -> None:
        """Load, answer, and free the memory."""
        with self.at_work() as answering:
            answering(questions, told)

    @contextmanager
    def at_work(self) -> Iterator[Answering]:
        """Loaded."""
        from harness.models.loading import let_go

        device = compute_device("auto")
        score: ScoreFunction | None = self._opened(device)

        def answer(questions: Sequence[str], told: Callable[[int, Answer], None]) -> None:
            assert score is not None
            for start in range(0, len(questions), self.batch_size):
                asked = [_read(question) for question in questions[start : start + self.batch_size]]
                rows = [{"prompt": prompt} for prompt, *_ in asked for _ in range(2)]
                texts: list[Any] = [text for _, *both in asked for text in both]  # messages too, as their row has them
                values = list(score(rows, texts, [True] * len(texts)))
                for number, (a, b) in enumerate(zip(values[::2], values[1::2], strict=True), start):
                    told(number, Answer(f"{a:.4f} and {b:.4f}: {_mark(a, b)}"))

        try:
            yield answer
        finally:
            score = None
            let_go(device)

    def _opened(self, device: str) -> ScoreFunction:
        import torch
        from transformers import AutoTokenizer

        from harness.tasks.conversation import style_of

        reward = ModelReward(
            path=self.path,
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
            max_length=self.max_length,
            score_batch_size=self.batch_size,
        )
        try:
            options = {"revision": self.revision, "trust_remote_code": self.trust_remote_code}
            tokenizer = AutoTokenizer.from_pretrained(self.path, **options)
            style = style_of(tokenizer, conversational=False, wanted=True)
            dtype = torch.bfloat16 if device == "cuda" and torch.cuda.is_bf16_supported() else torch.float32

            def rows_of(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
                if not style.chat and not all(isinstance(value, str) for row in rows for value in row.values()):
                    fix = "a model with a template, or data in plain text"
                    rule = "its tokenizer has no chat template, and these are conversations"
                    raise UserError(rule, key="judge.path", value=self.path, fix=fix)
                return style.rows(rows)

            precision = "bf16" if dtype == torch.bfloat16 else "fp32"
            return reward.open(Desk(None, tokenizer, rows_of, {}, device, dtype, precision))
        except (UserError, OSError, ValueError) as error:
            said = error.rule if isinstance(error, UserError) else (str(error).strip() or repr(error)).splitlines()[0]
            fix = "a folder or hub id of a sequence-classification model with its tokenizer"
            raise UserError(said, key="judge.path", value=self.path, fix=fix) from None


def _read(question: str) -> tuple[Text, Text, Text]:
    """Prompt and both replies of a question."""
    if question.startswith(MESSAGES):
        prompt, first, second = json.loads(question.removeprefix(MESSAGES))
        return prompt, first, second
    pair = compared_in(question)
    return pair.prompt, pair.first, pair.second


def _mark(first: float, second: float) -> str:
    """Of the higher score; none where one is no finite number."""
    if not (math.isfinite(first) and math.isfinite(second)):
        return "no verdict"
    return "[[A]]" if first > second else "[[B]]" if second > first else "[[C]]"
