"""Rows that begin alike are read once: a shared prompt is computed for all of its completions together. Imports torch.

Two hooks around a transformer body. Before it, the rows of a batch that begin with the same tokens become one row,
``[prompt][completion 1] … [completion G]``: positions restart after the prompt, and a mask lets each completion see the
prompt and itself. After it, hidden states return to the places where the caller expects them, so heads, losses and
critics stay as they are; the gradient of a shared prompt is the sum over its completions. As Hydragen and DPO's prefix
sharing have it (arXiv 2402.05099, 2410.20305).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from harness.base.errors import UserError
from harness.models.base import context_length
from harness.models.precision import computing

WORTH = 0.95
"""Of the cost of the batch as it comes, what the shared one may cost at most: laying out takes time too."""
MOST = 64
"""Rows of a group at most: the mask of a group grows with the square of its tokens."""
MOST_TOKENS = 32_768
"""Of a laid-out row: its mask has as many numbers as the square of them."""
PROMPT, NOBODY = -1, -1
APART = {"fp32": 1e-3, "bf16": 0.1}
"""Nats a token, on average, by which both ways may differ: rounding. A wrong mask is one to three nats off."""
PROBED = 24
"""Tokens of the prompt, and of each completion, by which both ways are compared."""

OTHERWISE = (
    "past_key_values", "inputs_embeds", "output_hidden_states", "output_attentions", "output_router_logits",
)  # fmt: skip
"""Arguments with which a caller wants more than hidden states of tokens."""


@dataclass(frozen=True)
class Layout:
    """Rows of a batch, laid out anew; all of shape (rows, tokens) but the last.

    Attributes:
        ids: tokens; 0 where there is none.
        positions: of each token in its own sequence.
        group: of rows that begin alike; ``NOBODY`` where there is no token.
        branch: which of the group's rows a token belongs to; ``PROMPT`` for what they share.
        source: for the tokens of each original row, one after the other, their places in the flattened ``ids``.
    """

    ids: np.ndarray
    positions: np.ndarray
    group: np.ndarray
    branch: np.ndarray
    source: list[np.ndarray]


def laid_out(rows: Sequence[np.ndarray], *, square: float, room: int = MOST_TOKENS) -> Layout | None:
    """The cheapest way to read rows of token ids, or None where as they come is about as good.

    Args:
        rows: token ids without padding.
        square: what attention between two tokens costs, in units of what else a token costs.
        room: tokens of a laid-out row at most, but for a row that is longer by itself: some architectures keep masks of
            the length of their context.
    """
    width = max(map(len, rows), default=0)
    order = sorted(range(len(rows)), key=lambda i: rows[i].tolist())
    groups = _groups([rows[i] for i in order], square, room)
    sizes = [prefix + sum(len(rows[i]) - prefix for i in order[first:end]) for first, end, prefix in groups]
    bins = _packed(sizes)
    tokens = max((sum(sizes[k] for k in members) for members in bins), default=0)
    before, after = (n * (t + square * t * t) for n, t in ((len(rows), width), (len(bins), tokens)))
    if not rows or after > WORTH * before:
        return None
    shape = (len(bins), tokens)
    ids, positions = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    group, branch = np.full(shape, NOBODY, dtype=np.int64), np.full(shape, PROMPT, dtype=np.int64)
    source: list[np.ndarray] = [np.empty(0, dtype=np.int64)] * len(rows)
    for place, members in enumerate(bins):
        at = 0
        for k in members:
            first, end, prefix = groups[k]
            head = np.arange(at, at + prefix)
            ids[place, head], positions[place, head] = rows[order[first]][:prefix], np.arange(prefix)
            group[place, at : at + sizes[k]] = k
            at += prefix
            for number, i in enumerate(order[first:end]):
                own = np.arange(at, at + len(rows[i]) - prefix)
                ids[place, own], branch[place, own] = rows[i][prefix:], number
                positions[place, own] = np.arange(prefix, len(rows[i]))
                source[i] = place * tokens + np.concatenate([head, own])
                at += len(own)
    return Layout(ids, positions, group, branch, source)


def _groups(rows: Sequence[np.ndarray], square: float, room: int) -> list[tuple[int, int, int]]:
    """Of sorted rows, (first, end, tokens that they share) of each group, at the lowest cost of all groupings."""
    alike = [0, *(_common(a, b) for a, b in zip(rows, rows[1:], strict=False))]
    best, cut = [0.0], [0]
    for end in range(1, len(rows) + 1):
        prefix, total, found = len(rows[end - 1]), 0, (float("inf"), 0)
        for first in range(end - 1, max(-1, end - 1 - MOST), -1):
            total += len(rows[first])
            prefix = min(prefix, alike[first + 1]) if first < end - 1 else prefix
            tokens = total - (end - first - 1) * prefix
            if tokens > room and first < end - 1:
                break
            found = min(found, (best[first] + tokens + square * tokens * tokens, first))
            if not alike[first]:
                break
        best.append(found[0])
        cut.append(found[1])
    groups, end = [], len(rows)
    while end:
        first = cut[end]
        prefix = min(alike[first + 1 : end], default=len(rows[first]))
        groups.append((first, end, int(prefix)))
        end = first
    return groups[::-1]


def _common(a: np.ndarray, b: np.ndarray) -> int:
    size = min(len(a), len(b))
    differ = np.flatnonzero(a[:size] != b[:size])
    return int(differ[0]) if len(differ) else size


def _packed(sizes: Sequence[int]) -> list[list[int]]:
    """Groups of these sizes in as few rows as long as the largest of them, larger ones first."""
    room, bins = max(sizes, default=0), []
    left: list[int] = []
    for k in sorted(range(len(sizes)), key=lambda k: -sizes[k]):
        place = next((i for i, free in enumerate(left) if free >= sizes[k]), None)
        if place is None:
            bins.append([])
            left.append(room)
            place = len(bins) - 1
        bins[place].append(k)
        left[place] -= sizes[k]
    return bins


def masks(layout: Layout, made: Callable[[np.ndarray], Tensor], *, dtype: Any, window: int | None) -> Tensor:
    """What is added to attention's scores, (rows, 1, tokens, tokens): 0 where a token sees another, else very little.

    Numbers and not booleans: eager attention would add a boolean mask as 0 and 1.
    """
    group, branch, positions = (made(part) for part in (layout.group, layout.branch, layout.positions))
    device = group.device
    same = group[:, :, None] == group[:, None, :]
    seen = (branch[:, None, :] == PROMPT) | (branch[:, :, None] == branch[:, None, :])
    sees = torch.ones(group.shape[1], group.shape[1], dtype=torch.bool, device=device).tril() & same & seen
    if window is not None:
        sees &= positions[:, :, None] - positions[:, None, :] < window
    mask = torch.zeros(sees.shape, dtype=dtype, device=device).masked_fill(~sees, torch.finfo(dtype).min)
    return mask[:, None]


class Prefixes:
    """Two hooks around the body of a causal language model.

    They leave alone what is no plain batch of rows: a cache, embeddings in place of tokens, positions or masks of the
    caller's own shape, a mixture of experts that balances its router, tensors without data.

    Attributes:
        on: whether they do anything.
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
        layout = None if rows is None else laid_out(rows, square=self._square, room=self._room)
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
        whole = masks(layout, made, dtype=dtype, window=None if self._kinds else window)
        if not self._kinds:
            return whole
        near = whole if window is None else masks(layout, made, dtype=dtype, window=window)
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
    return next((found for m in model.modules() if (found := m.__dict__.get("prefixes")) is not None), None)


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


def stop(model: Any) -> None:
    """Read every row by itself from now on."""
    if (found := of(model)) is not None:
        found.on = False


def apart(model: Any) -> AbstractContextManager[None]:
    """Within it ``model`` reads every row by itself."""
    return _switched(of(model), on=False)


def together(model: Any) -> AbstractContextManager[None]:
    """Within it ``model`` reads rows that begin alike as one, where it can."""
    found = of(model)
    return _switched(None if found is None or found.why else found, on=True)


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

    Two completions of one prompt are read together and apart. Rows are longer than the window of attention, where
    training has such rows. Of a model without a head over tokens hidden states are compared, to their own size.
    """
    prompt = max(PROBED, prefixes.near(longest))
    vocabulary = model.get_input_embeddings().weight.shape[0]
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (2, prompt + PROBED), generator=draw)
    ids[1, :prompt] = ids[0, :prompt]
    ids = ids.to(device)
    was = model.training
    model.eval()

    def said() -> Tensor:
        head = model.get_output_embeddings()
        with computing(device, precision):
            body = model.base_model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
            hidden = body.last_hidden_state[:, prompt - 1 : -1]
            if head is None:
                return hidden.float() / hidden.float().abs().mean()
            return head(hidden).float().log_softmax(-1).gather(2, ids[:, prompt:, None])

    try:
        with apart(model):
            plain = said()
        before = prefixes.computed
        off = float((said() - plain).abs().mean())
        together = prefixes.computed - before < ids.numel()
        prefixes.given = prefixes.computed = 0  # these rows are none of training's
        if together and off <= APART[precision]:
            return True
        prefixes.why = f"read together, completions are {off:.2g} nats a token from what they are apart"
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
