"""A loaded model that answers a judge's questions: by the letters of a verdict, or in words. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch

from harness.base.errors import UserError
from harness.config import identity
from harness.judges.base import Answer
from harness.judges.local import Local, in_our_words
from harness.models.base import context_length
from harness.models.draws import drawing, uniforms
from harness.models.generation import (
    keeps_logits,
    own_distribution,
    rows_within_cache,
    sampling_config,
    stop_ids,
)
from harness.tasks.conversation import encode_completions, prompt_ids, shared_length, style_of

if TYPE_CHECKING:
    from harness.models.hub import HF

MARKS = ("[[A]]", "[[B]]", "[[C]]")
MOST_TOKENS = 2**14
"""In one forward pass, padding included: questions of 2,000 tokens come eight at a time, and longer ones fewer."""
Told = Callable[[int, Answer], None]


class Reader:
    """A judge's model and tokenizer.

    Args:
        judge: names the model, and how it is read.
        shape: a dtype takes a model of the judge's shape in it, for tensors without data.
    """

    def __init__(self, judge: Local, shape: torch.dtype | None = None):
        """Load both; raises ``UserError`` where that cannot be."""
        self.judge, model = judge, judge.model
        self.device = _device(judge) if shape is None else "cpu"
        devices = [self.device] if self.device == "cuda" else []
        with in_our_words(), torch.random.fork_rng(devices=devices):  # whether it is loaded changes nobody's draws
            self.tokenizer: Any = model.tokenizer(None)
            if shape is None:
                self.model: Any = model.load(None, dtype=_dtype(judge, self.device), device=self.device).eval()
            else:
                self.model = _of_shape(model, shape if judge.dtype == "auto" else getattr(torch, judge.dtype))
        self.style = style_of(self.tokenizer, conversational=False, wanted=judge.chat_template == "auto")
        self.longest = context_length(self.model.config)

    def forget(self) -> None:
        """Hold the weights no longer."""
        self.model = None

    @torch.no_grad()
    def rehearse(self, questions: Sequence[str], more: int) -> None:
        """One forward pass over what takes the most memory; nothing is read of it.

        Args:
            questions: as they would be asked at once, without what is to be judged.
            more: tokens of that, in each.
        """
        letters = self.judge.read == "letters"
        lengths = [len(self._in_words(q)) + more + (0 if letters else self.judge.max_tokens) for q in questions]
        batch = next(self._batches(range(len(lengths)), lengths))
        width = min(lengths[batch[0]], self.longest or lengths[batch[0]])
        ids = torch.ones((len(batch), width), dtype=torch.long, device=self.device)
        few: dict[str, Any] = {"logits_to_keep": len(batch) if letters else 1} if keeps_logits(self.model) else {}
        self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=not letters, **few)

    @torch.no_grad()
    def answer(self, questions: Sequence[str], told: Told) -> None:
        """Answer each; a batch is told as soon as it is through, the longest first, so that memory ends it early."""
        letters = self.judge.read == "letters"
        rows = [self._with_letters(q) if letters else (self._in_words(q), ()) for q in questions]
        room = 0 if letters else self.judge.max_tokens
        reads = []
        for number, (ids, _) in enumerate(rows):
            if self.longest is not None and len(ids) + room > self.longest:
                words = f"not read: {len(ids):,} tokens, and {room:,} to answer, where the model takes {self.longest:,}"
                told(number, Answer(words, len(ids), whole=False))
            else:
                reads.append(number)
        for batch in self._batches(reads, [len(ids) + room for ids, _ in rows]):
            if letters:
                found = self._letters([rows[i] for i in batch])
            else:
                found = self._words([rows[i][0] for i in batch], [questions[i] for i in batch])
            for number, answer in zip(batch, found, strict=True):
                told(number, answer)

    def _batches(self, numbers: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
        """Questions of similar length together."""
        wide = self.model.dtype == torch.float32
        batch: list[int] = []
        for number in sorted(numbers, key=lambda i: (-lengths[i], i)):
            if batch:
                width = lengths[batch[0]]
                most = min(self.judge.batch_size, max(1, MOST_TOKENS // width))
                if self.judge.read == "words":
                    most = rows_within_cache(self.model.config, width, most, wide=wide)
                if len(batch) >= most:
                    yield batch
                    batch = []
            batch.append(number)
        if batch:
            yield batch

    # -- letters -----------------------------------------------------------------------------------------

    def _with_letters(self, question: str) -> tuple[list[int], tuple[int, ...]]:
        """Tokens of a question and of a reply up to its letter, and the token that each letter would be."""
        prompt = question if self.style.chat else f"{question}\n\n"
        rows = self.style.rows([{"prompt": prompt, "completion": mark} for mark in MARKS])
        found = encode_completions(self.tokenizer, rows)
        wholes = [p + c for p, c in zip(found["prompt_ids"], found["completion_ids"], strict=True)]
        start = min(shared_length(wholes[0], other) for other in wholes[1:])
        letters = tuple(whole[start] for whole in wholes)
        if len(set(letters)) < len(MARKS):
            raise UserError(
                "this tokenizer does not tell the letters of a verdict apart by one token",
                key="judge.read",
                value="letters",
                fix="judge.read=words",
            )
        return wholes[0][:start], letters

    def _letters(self, rows: Sequence[tuple[list[int], tuple[int, ...]]]) -> list[Answer]:
        """The verdict of each row. Padding is on the right, where causal attention cannot see it."""
        width = max(len(ids) for ids, _ in rows)
        last = [len(ids) - 1 for ids, _ in rows]
        ids, mask = self._padded([ids for ids, _ in rows], width, left=False)
        if keeps_logits(self.model):
            places = sorted(set(last))
            keep = torch.tensor(places, device=self.device)
            logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=keep).logits
            at = [places.index(place) for place in last]
        else:
            logits, at = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits, last
        chosen = logits[torch.arange(len(rows), device=self.device), torch.tensor(at, device=self.device)].float()
        if not bool(chosen.isfinite().all()):
            fix = "judge.dtype=float32, or bfloat16; or another model"
            raise UserError("what this model computes is not finite", key="judge.path", value=self.judge.path, fix=fix)
        shares = chosen.softmax(-1).gather(1, torch.tensor([letters for _, letters in rows], device=self.device))
        return [
            _verdict(share, self.judge.least, asked=len(ids))
            for share, (ids, _) in zip(shares.tolist(), rows, strict=True)
        ]

    # -- words -------------------------------------------------------------------------------------------

    def _in_words(self, question: str) -> list[int]:
        prompt = question if self.style.chat else f"{question}\n\n"
        return prompt_ids(self.tokenizer, [self.style.rows([{"prompt": prompt}])[0]["prompt"]])[0]

    def _words(self, rows: Sequence[list[int]], questions: Sequence[str]) -> list[Answer]:
        """What the model writes: greedily, or by draws that belong to each question."""
        width, room, heat = max(map(len, rows)), self.judge.max_tokens, self.judge.temperature
        ids, mask = self._padded(rows, width, left=True)
        how = sampling_config(self.tokenizer, self.model, max_new_tokens=room, temperature=heat)
        with ExitStack() as within:
            within.enter_context(own_distribution(self.model, self.tokenizer))
            ends = set(stop_ids(self.tokenizer, self.model))
            if self.judge.samples:
                numbers = uniforms(self.judge.seed, [_number(question) for question in questions], room)
                within.enter_context(drawing(self.model, numbers, heat))
            out = self.model.generate(input_ids=ids, attention_mask=mask, generation_config=how)[:, width:].tolist()
        found = []
        for row, tokens in zip(rows, out, strict=True):
            end = next((k for k, token in enumerate(tokens) if token in ends), len(tokens))
            text = str(self.tokenizer.decode(tokens[:end], skip_special_tokens=True))
            found.append(Answer(text, len(row), min(len(tokens), end + 1), whole=end < len(tokens)))
        return found

    def _padded(self, rows: Sequence[list[int]], width: int, *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask of rows, (B, width)."""
        pad = self.tokenizer.pad_token_id
        fill = [width - len(row) for row in rows]
        ids = [[pad] * n + row if left else row + [pad] * n for row, n in zip(rows, fill, strict=True)]
        mask = [[0] * n + [1] * len(r) if left else [1] * len(r) + [0] * n for r, n in zip(rows, fill, strict=True)]
        return torch.tensor(ids, device=self.device), torch.tensor(mask, device=self.device)


def _of_shape(model: HF, dtype: torch.dtype) -> Any:
    """The judge's architecture with weights that nobody made."""
    from transformers import AutoModelForCausalLM

    config = model.configuration(None)
    made = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=model.trust_remote_code)
    return made.eval().requires_grad_(False)


def _number(question: str) -> int:
    """Of the stream of draws of a question."""
    return int(identity.digest({"question": question}), 16) % 2**63


def _verdict(shares: Sequence[float], least: float, *, asked: int) -> Answer:
    """The most probable letter, with the probabilities of all; without a mark where they are too little together."""
    said = ", ".join(f"{mark[2]} {share:.3f}" for mark, share in zip(MARKS, shares, strict=True))
    if sum(shares) < least:
        return Answer(f"{said}: no verdict", asked, 1)
    return Answer(f"{said} {MARKS[max(range(len(shares)), key=shares.__getitem__)]}", asked, 1)


def _device(judge: Local) -> str:
    if judge.device != "auto":
        if judge.device == "cuda" and not torch.cuda.is_available():
            raise UserError("torch sees no CUDA device", key="judge.device", value="cuda", fix="judge.device=cpu")
        return judge.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _dtype(judge: Local, device: str) -> torch.dtype:
    if judge.dtype != "auto":
        return getattr(torch, judge.dtype)
    return torch.bfloat16 if device == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
