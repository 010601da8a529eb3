"""A causal language model's body under a scalar head: how a reward model is made, loaded and asked. Imports torch."""

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
    """A projection to one number that is held and computed in 32 bits, whatever autocast is on around it.

    The number is an advantage's, a return's or a reward's: bf16 would leave it two or three digits.
    """

    def __init__(self, width: int, *, bias: bool, device: Any):
        """Start at zero."""
        super().__init__(width, 1, bias=bias, device=device, dtype=torch.float32)
        nn.init.zeros_(self.weight)
        if bias:
            nn.init.zeros_(self.bias)

    def forward(self, hidden: Tensor) -> Tensor:  # type: ignore[override]
        """(..., width) in any dtype to (..., 1) in float32."""
        with torch.autocast(hidden.device.type, enabled=False):
            return super().forward(hidden.float())


def in_32_bits(shell: Any) -> Any:
    """Give a loaded sequence-classification model a head that computes in 32 bits, with the same weights."""
    score = getattr(shell, "score", None)
    if type(score) is nn.Linear and score.out_features == 1:
        head = Head(score.in_features, bias=score.bias is not None, device=score.weight.device)
        head.load_state_dict(score.state_dict())
        shell.score = head
    return shell


def save_head(shell: Any, folder: Path) -> None:
    """Keep the head beside the model, since loading a model in bf16 rounds all of its weights."""
    save_file({name: value.contiguous() for name, value in shell.score.state_dict().items()}, folder / HEAD)


def load_head(shell: Any, folder: Path) -> Any:
    """Give ``shell`` the head that ``save_head`` kept, in all of its 32 bits."""
    shell.score.load_state_dict(load_file(folder / HEAD, device=str(shell.device)))
    return shell


def with_score(causal: Any) -> Any:
    """The sequence-classification model of ``causal``'s architecture around the very weights of its body.

    No weight is copied or loaded again, so 4-bit bodies and bodies that carry adapters work. The head starts at
    zero and computes in 32 bits.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING as KNOWN

    config: Any = causal.config
    known: Any = KNOWN  # lazy: looking one class up imports that one
    if type(config) not in known:
        from harness.base.errors import UserError

        raise UserError(
            f"transformers knows no sequence-classification model of {config.model_type}",
            key="reward",
            value="model",
            fix="name a reward model of another architecture: reward.path=...",
        )
    config = copy.deepcopy(config)
    config.num_labels = 1
    with torch.device("meta"):
        shell = known[type(config)](config)
    setattr(shell, shell.base_model_prefix, causal.base_model)
    text = config.get_text_config()
    shell.score = Head(text.hidden_size, bias=False, device=causal.device)
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
    scores = torch.zeros(len(sequences))
    shared = prefixes.of(shell)
    pad = shell.config.get_text_config().pad_token_id = padding_for(sequences, pad)
    size = len if shared is None or shared.why else list  # rows that begin alike stand beside each other
    order = sorted(range(len(sequences)), key=lambda i: size(sequences[i]))
    with turn(), prefixes.together(shell):
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
            scores[torch.tensor(chosen)] = out.logits[:, 0].float().cpu()
    return scores


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
