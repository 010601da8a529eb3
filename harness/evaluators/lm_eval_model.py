"""lm-eval's wrapper of the model in memory, at a length of its own; what does not fit is counted. Imports lm_eval."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from lm_eval import evaluator, utils
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs

from harness.base.errors import UserError
from harness.base.replacing import replaced
from harness.evaluators.base import EvalContext
from harness.evaluators.scoring import rows_at_once
from harness.models import context_length
from harness.models.virtual_tokens import has_virtual_tokens

LONGEST = 8192
"""Tokens, where the model allows more and nobody asked for them: benchmarks' prompts are shorter, and memory is not."""


@contextmanager
def economical() -> Iterator[None]:
    """Within it lm-eval compiles a template once and not for every document, and asks nothing about the machine.

    That was half of its time on the embedded task: pip and other programs are started for a description that nobody
    reads here, since a trial has one of its own.
    """
    compiled = functools.lru_cache(1024)(utils.env.from_string)
    with replaced(utils.env, "from_string", compiled), replaced(evaluator, "add_env_info", lambda _: None):
        yield


def length_for(context: EvalContext, asked: int | None) -> int:
    """Tokens of prompt and answer: as asked for, else the model's context, at most ``LONGEST``.

    Raises:
        UserError: more than the context was asked for.
    """
    limit = context_length(context.model.config)
    if asked is None:
        return min(limit or context.max_length, LONGEST)
    if limit is not None and asked > limit:
        raise UserError(
            f"the model's context is {limit} tokens",
            key="eval.evaluators.lm_eval.max_length",
            value=asked,
            fix=f"eval.evaluators.lm_eval.max_length={limit}, or null",
        )
    return asked


Wrapper: Any = HFLM
"""Its metaclass hides its signature from type checkers."""


class CountingModel(Wrapper):
    """The model of ``context`` as lm-eval wants it.

    lm-eval cuts what is too long from the left and says so in a log. Here each document of which a token was cut is
    counted, and an answer that is longer than the whole length becomes shorter instead of ending the evaluation.

    Attributes:
        cut: task -> documents of which a prompt (or a scored choice with it) lost tokens on the left.
        shortened: task -> tokens that answers may have, where the task allows more than fits.
    """

    def __init__(self, context: EvalContext, max_length: int):
        """Wrap; batches are as large as the evaluators' where their logits allow it."""
        super().__init__(
            pretrained=context.model,
            tokenizer=context.tokenizer,
            batch_size=context.batch_size,
            max_length=max_length,
            device=context.device,
            mixed_precision_dtype="bfloat16" if context.precision == "bf16" else None,
        )
        self.context = context
        self._current: list[Any] = []
        self.cut: dict[str, set[int]] = {}
        self.shortened: dict[str, int] = {}

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> Any:
        """Score continuations; counts documents whose beginning is cut."""
        self._current = list(requests)
        try:
            return super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        finally:
            self._current = []

    def _loglikelihood_tokens(self, requests: Sequence[Any], *arguments: Any, **options: Any) -> Any:
        asked = self._current
        for i, (_, before, scored) in enumerate(requests):
            if len(scored) > self.max_length:
                raise UserError(
                    f"{asked[i].task_name if asked else 'a task'} scores a text of {len(scored)} tokens",
                    key="eval.evaluators.lm_eval.max_length",
                    value=self.max_length,
                    fix="leave the task out, or allow more tokens where the model's context does",
                )
            if asked and len(before) + len(scored) > self.max_length + 1:  # the last token is only predicted
                self._count(asked[i])
        longest = max((len(before) + len(scored) for _, before, scored in requests), default=1)
        self.batch_size_per_gpu = rows_at_once(self.context, min(longest, self.max_length))
        return super()._loglikelihood_tokens(requests, *arguments, **options)

    def _model_call(self, inps: Any, *arguments: Any, **options: Any) -> Any:
        return super()._model_call(inps, *arguments, **options)[:, -inps.shape[1] :]  # less an adapter's virtual tokens

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> Any:
        """Generate answers; counts documents whose prompt is cut, and makes room where an answer would take it all."""
        fitting, longest = [], 1
        for request in requests:
            prompt, options = request.args
            given: Any = normalize_gen_kwargs(options, self.max_gen_toks)
            tokens = int(given["max_gen_toks"])
            if tokens >= self.max_length:
                tokens = self.max_length // 2
                self.shortened[str(request.task_name)] = tokens
                request = replace(request, arguments=(prompt, with_tokens(options, tokens)))
            length = len(self.tok_encode(prompt))
            if length > self.max_length - tokens:
                self._count(request)
            longest = max(longest, min(length + tokens, self.max_length))
            fitting.append(request)
        self.batch_size_per_gpu = rows_at_once(self.context, longest)
        if has_virtual_tokens(
            self.context.model
        ):  # padding between its tokens and the prompt's would count in a window
            self.batch_size_per_gpu = 1
        return super().generate_until(fitting, disable_tqdm=disable_tqdm)

    def _count(self, request: Any) -> None:
        self.cut.setdefault(str(request.task_name), set()).add(int(request.doc_id))


def with_tokens(options: Mapping[str, Any], tokens: int) -> dict[str, Any]:
    """A task's options with another limit of tokens, under whichever of its names lm-eval knows it."""
    names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
    return {**{k: v for k, v in options.items() if k not in names}, "max_gen_toks": tokens}
