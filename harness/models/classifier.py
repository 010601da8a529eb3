"""A causal language model's body under a scalar head: how a reward model is made, loaded and asked. Imports torch.

The head is read once for a sequence (sequence classification), or at several of its tokens (token classification).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from harness.models import prefixes
from harness.models.precision import computing
from harness.tasks.conversation import encode_completions, is_conversational, reply_end

HEAD = "head.safetensors"


class Head(nn.Linear):
    """A projection to one number, or a few, that is held and computed in 32 bits, whatever autocast is on around it.

    The number is an advantage's, a return's or a reward's: bf16 would leave it two or three digits.
    """

    def __init__(self, width: int, *, bias: bool, device: Any, outputs: int = 1):
        """Start at zero."""
        super().__init__(width, outputs, bias=bias, device=device, dtype=torch.float32)
        nn.init.zeros_(self.weight)
        if bias:
            nn.init.zeros_(self.bias)

    def forward(self, hidden: Tensor) -> Tensor:  # type: ignore[override]
        """(..., width) in any dtype to (..., outputs) in float32."""
        with torch.autocast(hidden.device.type, enabled=False):
            return super().forward(hidden.float())


def head_name(shell: Any) -> str:
    """What a classification model calls its head; architectures differ where every token is classified."""
    return "score" if hasattr(shell, "score") else "classifier"


def in_32_bits(shell: Any) -> Any:
    """Give a loaded classification model a head that computes in 32 bits, with the same weights."""
    old = getattr(shell, head_name(shell), None)
    if type(old) is nn.Linear:
        head = Head(old.in_features, bias=old.bias is not None, device=old.weight.device, outputs=old.out_features)
        head.load_state_dict(old.state_dict())
        setattr(shell, head_name(shell), head)
    return shell


def save_head(shell: Any, folder: Path) -> None:
    """Keep the head beside the model, since loading a model in bf16 rounds all of its weights."""
    state = getattr(shell, head_name(shell)).state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, folder / HEAD)


def load_head(shell: Any, folder: Path) -> Any:
    """Give ``shell`` the head that ``save_head`` kept, in all of its 32 bits."""
    getattr(shell, head_name(shell)).load_state_dict(load_file(folder / HEAD, device=str(shell.device)))
    return shell


def with_score(causal: Any, *, each_token: bool = False) -> Any:
    """The classification model of ``causal``'s architecture around the very weights of its body.

    It classifies sequences, or with ``each_token`` every token. No weight is copied or loaded again, so 4-bit bodies
    and bodies that carry adapters work. The head starts at zero and computes in 32 bits.
    """
    from transformers.models.auto import modeling_auto

    config: Any = causal.config
    each, whole = (
        modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
        modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    )
    known: Any = each if each_token else whole  # lazy: looking one class up imports that one
    if type(config) not in known:
        from harness.base.errors import UserError

        kind = "token" if each_token else "sequence"
        raise UserError(
            f"transformers knows no {kind}-classification model of {config.model_type}",
            key="reward",
            value="process" if each_token else "model",
            fix="name a reward model of another architecture: reward.path=...",
        )
    config = copy.deepcopy(config)
    config.num_labels = 1
    if each_token:
        config.classifier_dropout = 0.0
    with torch.device("meta"):
        shell = known[type(config)](config)
    setattr(shell, shell.base_model_prefix, causal.base_model)
    text = config.get_text_config()
    bias = each_token and getattr(shell, head_name(shell)).bias is not None
    setattr(shell, head_name(shell), Head(text.hidden_size, bias=bias, device=causal.device))
    for name in ("is_loaded_in_4bit", "is_loaded_in_8bit", "is_quantized", "hf_quantizer", "quantization_method"):
        if hasattr(causal, name):
            setattr(shell, name, getattr(causal, name))
    return shell


def undropped(config: Any) -> Any:
    """The adapter configuration of a role that only gives numbers: with dropout they would change from call to call."""
    config = copy.deepcopy(config)
    if getattr(config, "lora_dropout", None):
        config.lora_dropout = 0.0
    return config


@contextmanager
def acting(policy: Any, adapter: str) -> Iterator[None]:
    """Forward and backward passes within this go through ``adapter`` of a peft model, then the policy's own again."""
    policy.set_adapter(adapter)
    try:
        yield
    finally:
        policy.set_adapter("default")


@torch.no_grad()
def score_sequences(
    shell: Any,
    sequences: Sequence[Sequence[int]],
    *,
    pad: int,
    batch_size: int,
    device: str,
    precision: str,
    turn: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Tensor:
    """Scores of token sequences, float32, in their order; padded on the right, in batches of similar length.

    A model that reads rows that begin alike as one (``prefixes``) has them in one batch.

    transformers reads a score at the last token that is not the pad token. Where that is the end-of-sequence token
    too, the end would not be seen: such sequences are padded with another token.

    Args:
        shell: a sequence-classification model with one label.
        sequences: token ids of prompt and completion.
        pad: id of the pad token.
        batch_size: sequences per forward pass.
        device: where the model is.
        precision: in which it computes.
        turn: within it, forward passes are the model's (an adapter on a shared base is active).
    """
    pad = shell.config.get_text_config().pad_token_id = padding_for(sequences, pad)
    scores = torch.zeros(len(sequences))
    passes = _passes(shell, sequences, pad=pad, batch_size=batch_size, device=device, precision=precision)
    with turn():
        for chosen, logits in passes:
            scores[torch.tensor(chosen)] = logits[:, 0].float().cpu()
    return scores


@torch.no_grad()
def score_places(
    shell: Any,
    sequences: Sequence[Sequence[int]],
    places: Sequence[Sequence[int]],
    *,
    pad: int,
    batch_size: int,
    device: str,
    precision: str,
    turn: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Tensor:
    """Log-odds of the last label at some tokens of each sequence, float32, one after the other in the order given.

    Args:
        shell: a token-classification model with one label, whose output is the log-odds, or with two.
        sequences: token ids of prompt and completion.
        places: indices of tokens in each sequence.
        pad: as ``score_sequences`` has it, and the following too.
        batch_size: sequences per forward pass.
        device: where the model is.
        precision: in which it computes.
        turn: within it, forward passes are the model's.
    """
    starts = list(itertools.accumulate(map(len, places), initial=0))
    scores = torch.zeros(starts[-1])
    passes = _passes(shell, sequences, pad=pad, batch_size=batch_size, device=device, precision=precision)
    with turn():
        for chosen, logits in passes:
            found = [(k, place, starts[i] + n) for k, i in enumerate(chosen) for n, place in enumerate(places[i])]
            if found:
                rows, columns, targets = (torch.tensor(index) for index in zip(*found, strict=True))
                own = logits[rows.to(device), columns.to(device)].float()
                odds = own[:, 0] if own.shape[1] == 1 else own[:, 1] - own[:, 0]
                scores[targets] = odds.cpu()
    return scores


def _passes(
    shell: Any, sequences: Sequence[Sequence[int]], *, pad: int, batch_size: int, device: str, precision: str
) -> Iterator[tuple[list[int], Tensor]]:
    """Indices of the sequences of each batch, with the model's outputs for it."""
    shared = prefixes.of(shell)
    size = len if shared is None or shared.why else list  # rows that begin alike stand beside each other
    order = sorted(range(len(sequences)), key=lambda i: size(sequences[i]))
    with prefixes.together(shell):
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            width = max(len(sequences[i]) for i in chosen)
            rows = [[*sequences[i], *[pad] * (width - len(sequences[i]))] for i in chosen]
            marks = [[1] * len(sequences[i]) + [0] * (width - len(sequences[i])) for i in chosen]
            with computing(device, precision):
                out = shell(
                    input_ids=torch.tensor(rows, device=device),
                    attention_mask=torch.tensor(marks, device=device),
                    use_cache=False,
                )
            yield chosen, out.logits


def padding_for(sequences: Sequence[Sequence[int]], pad: int) -> int:
    """A token with which none of the sequences ends: ``pad``, or the first other one."""
    last = {ids[-1] for ids in sequences if ids}
    return next(token for token in itertools.chain([pad], itertools.count()) if token not in last)


def sequences_of(
    tokenizer: Any, rows: Sequence[Mapping[str, Any]], *, ended: Sequence[bool], longest: int | None
) -> list[list[int]]:
    """Token ids of prompts with their completions, as the reward model reads them.

    A completion that did not end by itself is shown without what ends one: the end token of text rows, or what the
    template puts after a reply. Of what is longer than ``longest`` the end is kept, since that is where the score is
    read.

    Args:
        tokenizer: the reward model's.
        rows: with ``prompt`` and ``completion``, all of them text or all of them messages.
        ended: whether each completion ended by itself.
        longest: tokens that are kept; None keeps all.
    """
    found = encode_completions(tokenizer, rows)
    end = [] if all(ended) else reply_end(tokenizer, chat=is_conversational(rows))
    sequences = []
    for prompt, completion, whole in zip(found["prompt_ids"], found["completion_ids"], ended, strict=True):
        cut = len(completion) - len(end)
        if end and not whole and completion[cut:] == end:
            completion = completion[:cut]
        ids = [*prompt, *completion]
        sequences.append(ids if longest is None else ids[-longest:])
    return sequences
