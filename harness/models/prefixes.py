"""Rows that begin alike are read once: a shared prompt is computed for all of its completions together. Imports torch.

Two hooks around a transformer body. Before it, the rows of a batch that begin with the same tokens become one row,
``[prompt][completion 1] … [completion G]``: positions restart after the prompt, and a mask lets each completion see the
prompt and itself. After it, hidden states return to the places where the caller expects them, so heads, losses and
critics stay as they are; the gradient of a shared prompt is the sum over its completions. As Hydragen and DPO's prefix
sharing have it (arXiv 2402.05099, 2410.20305).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from harness.base.errors import UserError
from harness.models.base import context_length
from harness.models.loading import FLEX, attention_of
from harness.models.precision import computing
from harness.models.prefix_layout import MOST_TOKENS, Layout, blocks, laid_out, masks

APART = {"fp32": 1e-3, "bf16": 0.1}
"""Nats a token, on average, by which both ways may differ: rounding. A wrong mask is one to three nats off."""
PROBED = 24
"""Tokens of the prompt, and of the end of each completion, by which both ways are compared."""
TAKES_MASKS = ("sdpa", "eager", FLEX)
"""Implementations of attention that read a mask of the caller's own. Flash attention takes its numbers for places of
tokens, and on CUDA nothing computes any more after such a read."""

OTHERWISE = (
    "past_key_values", "inputs_embeds", "output_hidden_states", "output_attentions", "output_router_logits",
)  # fmt: skip
"""Arguments with which a caller wants more than hidden states of tokens."""


class Prefixes:
    """Two hooks around the body of a causal language model.

    They leave alone what is no plain batch of rows: a cache, embeddings in place of tokens, positions or masks of the
    caller's own shape, a mixture of experts that balances its router, tensors without data.

    Attributes:
        on: whether they do anything.
        attention: the implementation, by transformers' name.
        why: why they do nothing, for a reader; empty where there is nothing to say.
        foreseen: for a batch without data, of a shape: the rows that it would have; None leaves it alone.
        given: tokens of the plain batches that came, padding included.
        computed: tokens that were read instead.
    """

    foreseen: Callable[[tuple[int, ...]], list[np.ndarray] | None] | None = None

    def __init__(self, body: Any) -> None:
        """Watch ``body``, the transformer without its head."""
        text = body.config.get_text_config()
        self.on, self.why, self.given, self.computed = True, "", 0, 0
        self.attention = attention_of(text)
        self._square = 2 * text.hidden_size * text.num_hidden_layers / max(1, _weights(body))
        self._window = getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None
        kinds = set(getattr(text, "layer_types", None) or ())
        self._kinds = kinds if len(kinds) > 1 else set()
        if kinds == {"full_attention"}:
            self._window = None
        named = {n: v for n, v in text.to_dict().items() if "window" in n or "chunk" in n}
        self._spans = [v for v in named.values() if isinstance(v, int) and not isinstance(v, bool) and v > 1]
        self._room = context_length(text) or MOST_TOKENS
        self._places: tuple[tuple[int, ...], Tensor] | None = None
        body.prefixes = self  # a copy of the body has a copy of this
        body.register_forward_pre_hook(self._before, with_kwargs=True)
        body.register_forward_hook(self._after, with_kwargs=True)

    def near(self, longest: int) -> int:
        """The farthest that layers of this architecture may look in rows of ``longest`` tokens; 0: nothing says so.

        By whatever name a configuration has for it (``sliding_window``, ``window_size``, ``attention_chunk_size``).
        """
        return max((size for size in self._spans if size < longest), default=0)

    def refuse(self, asked: Literal["auto"] | bool) -> None:
        """Raise where sharing was asked for by name and gives other numbers."""
        if asked is True:
            raise UserError(self.why, key="train.share_prefix", value=True, fix="train.share_prefix=auto, or false")

    def _before(self, body: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        self._places = None
        if len(arguments) == 1 and "input_ids" not in options:  # as transformers' classifiers call their body
            arguments, options = (), {"input_ids": arguments[0], **options}
        ids, mask = options.get("input_ids"), options.get("attention_mask")
        if not self.on or arguments or not self._plain(body, ids, mask, options):
            return None
        assert isinstance(ids, Tensor) and isinstance(mask, Tensor)
        shape, device, fake = tuple(ids.shape), ids.device, isinstance(ids, FakeTensor)
        if fake:
            rows = None if self.foreseen is None else self.foreseen(shape)
            marks = np.array([[k < len(row) for k in range(shape[1])] for row in rows or ()])
        else:
            marks, tokens = mask.bool().cpu().numpy(), ids.cpu().numpy()
            rows = [row[kept] for row, kept in zip(tokens, marks, strict=True)]
        layout = None if rows is None else laid_out(rows, square=self._square, width=shape[1], room=self._room)
        self.given += ids.numel()
        self.computed += ids.numel() if layout is None else layout.ids.size
        if layout is None:
            return None
        places = np.zeros(shape, dtype=np.int64)
        for row, (kept, source) in enumerate(zip(marks, layout.source, strict=True)):
            places[row, kept] = source

        def made(part: np.ndarray) -> Tensor:
            if fake:
                return torch.empty(part.shape, dtype=torch.long, device=device)
            return torch.from_numpy(part).to(device)

        self._places = shape, made(places)
        changed = {k: v for k, v in options.items() if k != "cache_position"}
        return arguments, changed | {
            "input_ids": made(layout.ids),
            "position_ids": made(layout.positions),
            "attention_mask": self._mask(layout, made, body, device.type),
        }

    def _mask(self, layout: Layout, made: Callable[[np.ndarray], Tensor], body: Any, device: str) -> Any:
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else body.dtype
        longest = int(layout.positions.max()) + 1
        window = self._window if self._window is not None and longest > self._window else None
        mask = partial(blocks, layout, made) if self.attention == FLEX else partial(masks, layout, made, dtype=dtype)
        whole = mask(window=None if self._kinds else window)
        if not self._kinds:
            return whole
        near = whole if window is None else mask(window=window)
        return {kind: near if kind == "sliding_attention" else whole for kind in self._kinds}

    def _plain(self, body: Any, ids: Any, mask: Any, options: dict[str, Any]) -> bool:
        if not isinstance(ids, Tensor) or not isinstance(mask, Tensor) or ids.dim() != 2 or mask.shape != ids.shape:
            return False
        if ids.shape[0] < 2 or options.get("use_cache") is not False or ids.device.type == "meta":
            return False
        if any(options.get(name) is not None and options[name] is not False for name in OTHERWISE):
            return False
        balances = getattr(body.config.get_text_config(), "output_router_logits", False)
        return not balances and self._kinds <= {"full_attention", "sliding_attention"}

    def _after(self, _: Any, __: Any, ___: Any, output: Any) -> Any:
        if self._places is None:
            return None
        (shape, places), self._places = self._places, None
        hidden = output.last_hidden_state
        output.last_hidden_state = hidden.flatten(0, 1).index_select(0, places.flatten()).unflatten(0, shape)
        return output


def share(model: Any, asked: Literal["auto"] | bool) -> Prefixes | None:
    """Have a causal language model read shared beginnings once; None where it does not: not asked to, or no body."""
    body = getattr(model, "base_model", None)
    return None if asked is False or body is None or body is model else Prefixes(body)


def of(model: Any) -> Prefixes | None:
    """The hooks that a model was given, also where it is wrapped."""
    parts = model.modules() if hasattr(model, "modules") else ()
    return next((found for m in parts if (found := m.__dict__.get("prefixes")) is not None), None)


def ready(model: Any, asked: Literal["auto"] | bool, *, longest: int, device: str, precision: str) -> Prefixes | None:
    """Have a model that was loaded just now share beginnings where it is asked to: in ``together`` alone, for now.

    Raises:
        UserError: it was asked for by name, and gives other numbers.
    """
    if (found := of(model)) is None and (found := share(model, asked)) is not None:
        if not agrees(model, found, longest=longest, device=device, precision=precision):
            found.refuse(asked)
        found.on = False
    return found


def can(model: Any) -> bool:
    """Whether ``model`` was seen to read rows that begin alike as one, at present or not, and its adapter lets it."""
    return (found := of(model)) is not None and not found.why and not by_place(getattr(model, "peft_config", {}))


def by_place(adapters: Mapping[str, Any]) -> bool:
    """Whether an adapter counts tokens from a row's start: learned ones before it, or from where aLoRA is called."""
    return any(a.is_prompt_learning or getattr(a, "alora_invocation_tokens", None) for a in adapters.values())


def stop(model: Any) -> None:
    """Read every row by itself from now on."""
    if (found := of(model)) is not None:
        found.on = False


def apart(model: Any) -> AbstractContextManager[None]:
    """Within it ``model`` reads every row by itself."""
    return _switched(of(model), on=False)


def together(model: Any) -> AbstractContextManager[None]:
    """Within it ``model`` reads rows that begin alike as one, where it can."""
    return _switched(of(model) if can(model) else None, on=True)


@contextmanager
def _switched(found: Prefixes | None, *, on: bool) -> Iterator[None]:
    if found is None:
        yield
        return
    was, found.on = found.on, on
    try:
        yield
    finally:
        found.on = was


@torch.no_grad()
def agrees(model: Any, prefixes: Prefixes, *, longest: int, device: str, precision: str) -> bool:
    """Whether both ways give the same log-probabilities; where not, sharing is off from then on, and why is kept.

    Two completions of one prompt are read together and apart, the first as long as the window of attention where
    training has such rows: its end may not see the prompt, and the other, which stands behind it, must. Of a model
    without a head over tokens hidden states are compared, to their own size.
    """
    if (kind := prefixes.attention) not in TAKES_MASKS:
        prefixes.why, prefixes.on = f"{kind} takes no mask by which completions of one prompt are told apart", False
        return False
    ends = (PROBED + max(PROBED, prefixes.near(longest)), 2 * PROBED)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (2, ends[0]), generator=draw)
    ids[1, :PROBED] = ids[0, :PROBED]
    ids = ids.to(device)
    marks = torch.ones_like(ids)
    marks[1, ends[1] :] = 0
    was = model.training
    model.eval()

    def said() -> Tensor:
        head = model.get_output_embeddings()
        with computing(device, precision):
            body = model.base_model(input_ids=ids, attention_mask=marks, use_cache=False)
            hidden = torch.stack(
                [h[end - PROBED - 1 : end - 1] for h, end in zip(body.last_hidden_state, ends, strict=True)]
            )
            if head is None:
                return hidden.float() / hidden.float().abs().mean()
            wanted = torch.stack([row[end - PROBED : end] for row, end in zip(ids, ends, strict=True)])
            return head(hidden).float().log_softmax(-1).gather(2, wanted[..., None])

    try:
        with apart(model):
            plain = said()
        before = prefixes.computed
        off = float((said() - plain).abs().flatten(1).mean(1).max())
        read = prefixes.computed - before
        prefixes.given = prefixes.computed = 0  # these rows are none of training's
        if 0 < read < ids.numel() and off <= APART[precision]:
            return True
        prefixes.why = f"read together, completions are {off:.2g} nats a token from what they are apart"
        if not 0 < read < ids.numel():
            prefixes.why = "its layers, or how it balances its experts, want rows as they come"
    except Exception as error:  # whatever an architecture makes of such a mask
        prefixes.why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    finally:
        model.train(was)
    prefixes.on = False
    return False


def _weights(body: Any) -> int:
    """Numbers that a token meets on its way through the layers, embeddings left out."""
    inputs = body.get_input_embeddings().weight.numel()
    return sum(p.numel() for p in body.parameters()) - inputs
