"""A plan as text for a terminal or as markdown. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tabulate import tabulate

from harness.base import formatting
from harness.plan.fixes import UNJUDGED, Fix
from harness.plan.gpus import CONTEXT_BYTES, FRAGMENTED, GB, HEAP, PROCESS_BYTES, Gpu, needed
from harness.plan.predict import Prediction
from harness.plan.spread import Share
from harness.rehearsal.timeline import OWNERS

PHASES = ("load", "baseline", "reference", "train", "rollout", "evaluate")
SHORT = {
    "optimizer": "optim.",
    "activations": "activ.",
    "kv_cache": "KV cache",
    "gradients": "grad.",
    "workspaces": "cuBLAS",
}


@dataclass(frozen=True)
class Row:
    """One trial of a plan.

    Attributes:
        label: its name.
        prediction: None where the model cannot be built.
        problem: why.
        fixes: what to change where it does not fit.
        nearest: of the changes that were tried, the one that comes nearest, where none makes it fit.
        note: what a reader should know of it.
        shares: what each of several GPUs would hold, where it was asked; the last is the fewest on which it fits.
    """

    label: str
    prediction: Prediction | None
    problem: str = ""
    fixes: Sequence[Fix] = field(default_factory=tuple)
    nearest: Fix | None = None
    note: str = ""
    shares: Sequence[Share] = ()


def render(rows: Sequence[Row], gpu: Gpu | None, *, cuda: bool, rule: str, markdown: bool) -> str:
    """The whole plan.

    Args:
        rows: trials, in order.
        gpu: to fit into; None compares with nothing.
        cuda: predicted for a GPU, or for the CPU.
        rule: how long rows were taken to be, in words.
        markdown: else for a terminal.
    """
    told = [row for row in rows if row.prediction is not None]
    where = f"on {gpu.name} ({gb(gpu.bytes)} GB)" if gpu else "on a GPU" if cuda else "on the CPU"
    parts = [f"{'# ' if markdown else ''}Predicted peak memory {where}"]
    if told:
        parts += [_table(*_by_phase(told, gpu), markdown), _title("Predicted, by owner at the peak", markdown)]
        parts.append(_table(*_by_owner(told), markdown))
    parts += [f"{row.label}: not predicted, {row.problem}" for row in rows if row.prediction is None]
    parts += [f"{row.label}: {row.note}" for row in rows if row.note]
    if gpu is not None:
        unfit = [row for row in told if row.prediction and not gpu.fits(row.prediction.peak)]
        if unfit:
            parts.append(_title("What to change", markdown))
            parts.append("\n".join(_advice(row, gpu) for row in unfit))
        if any(row.shares for row in told):
            parts.append(_title("On how many GPUs it fits", markdown))
            parts.append("\n".join(_on_several(row, gpu) for row in told if row.shares))
    parts += [_title("Assumptions", markdown), "\n".join(f"- {line}" for line in assumptions(cuda, rule))]
    return "\n\n".join(parts) + "\n"


def as_json(rows: Sequence[Row], gpu: Gpu | None, *, cuda: bool, rule: str) -> str:
    """The same for programs: predicted bytes by phase and owner, the assumptions, and whether it fits."""
    trials = []
    for row in rows:
        found = row.prediction
        if found is None:
            trials.append({"trial": row.label, "problem": row.problem})
            continue
        total = found.needed(cuda=cuda)
        trials.append(
            {
                "trial": row.label,
                "predicted_peak_bytes": found.peak,
                "predicted_needed_bytes": total,
                "row_tokens": found.rows,
                "set_by": found.phase,
                "phases": found.phases,
                "fits": None if gpu is None else gpu.fits(found.peak),
                **({"note": row.note} if row.note else {}),
                "fixes": [_as_record(fix) for fix in row.fixes],
                **({"nearest": _as_record(row.nearest)} if row.nearest else {}),
                **({"shares": [_share(share, gpu, cuda=cuda) for share in row.shares]} if row.shares else {}),
            }
        )
    place = None if gpu is None else {"name": gpu.name, "bytes": gpu.bytes}
    return json.dumps({"gpu": place, "assumptions": assumptions(cuda, rule), "trials": trials}, indent=1) + "\n"


def _as_record(fix: Fix) -> dict[str, Any]:
    return {"overrides": fix.overrides, "predicted_peak_bytes": fix.peak}


def _share(share: Share, gpu: Gpu | None, *, cuda: bool) -> dict[str, Any]:
    if share.prediction is None:
        return {"processes": share.processes, "problem": share.problem}
    return {
        "processes": share.processes,
        "overrides": share.overrides,
        "predicted_peak_bytes": share.prediction.peak,
        "predicted_needed_bytes": share.prediction.needed(cuda=cuda),
        "set_by": share.prediction.phase,
        "fits": None if gpu is None else gpu.fits(share.prediction.peak),
    }


def assumptions(cuda: bool, rule: str) -> list[str]:
    """What a prediction stands on, a line each."""
    lines = [
        "Predicted, not measured: the trial's own step, run on tensors without data; live tensors in GB (10⁹ bytes).",
        f"Rows, in tokens: {rule}; completions are sampled to their full length; the optimizer's state exists already.",
    ]
    if cuda:
        lines += [
            "Where train.precision and model.dtype are auto, on GPUs since Ampere: trained weights in fp32, frozen "
            "ones in bf16, computation in bf16; PyTorch's fused attention.",
            f'"needs" adds to the peak {FRAGMENTED:.0%} for fragmentation and {gb(CONTEXT_BYTES)} GB for CUDA; '
            "each request is rounded up to 512 bytes. Of libraries' workspaces, cuBLAS's are counted, as on Hopper.",
        ]
    else:
        lines.append(
            f"Weights in 32 bits. Resident memory is more: activations count {HEAP:g} times for holes in the heap, and "
            f"a process holds {gb(PROCESS_BYTES)} GB of libraries; a run shows it beside what it measured."
        )
    lines.append(
        "lm-eval's own documents are not looked at; a base that is trained first (model=tiny) is not included."
    )
    return lines


def _by_phase(rows: Sequence[Row], gpu: Gpu | None) -> tuple[list[str], list[list[str]]]:
    phases = [p for p in PHASES if any(p in row.prediction.phases for row in rows if row.prediction)]
    head = ["trial", "rows", "predicted peak", "set by", *phases]
    if gpu is not None:
        head += ["needs", "fits"]
    body = []
    for row in rows:
        found = row.prediction
        assert found is not None
        rows_of = f"{found.rows:,}" if found.rows else formatting.MISSING
        line = [row.label, rows_of, gb(found.peak), found.phase, *(gb(found.totals.get(p)) for p in phases)]
        if gpu is not None:
            line += [gb(needed(found.peak)), "yes" if gpu.fits(found.peak) else "NO"]
        body.append(line)
    return head, body


def _by_owner(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    owners = [o for o in OWNERS if any(o in row.prediction.owners for row in rows if row.prediction)]
    head = ["trial", *(SHORT.get(o, o) for o in owners)]
    return head, [[row.label, *(gb(row.prediction.owners.get(o)) for o in owners)] for row in rows if row.prediction]


def _advice(row: Row, gpu: Gpu) -> str:
    """What makes an unfit trial fit."""
    assert row.prediction is not None
    head = f"- {row.label} needs {gb(needed(row.prediction.peak))} GB of {gb(gpu.bytes)}"
    if not row.fixes:
        told = (
            f"{head}: nothing that was tried makes it fit (smaller micro-batches, adapters, shorter rows, no judging)"
        )
        if row.nearest is None:
            return told
        way = f"`{' '.join(row.nearest.overrides)}`"
        return (
            f"{told}; the nearest is {way}, and left to change is the GPU: {gb(needed(row.nearest.peak))} GB, predicted"
        )
    ways = "; or ".join(
        f"`{' '.join(fix.overrides)}` (needs {gb(needed(fix.peak))} GB, predicted"
        f"{'; it is then not judged' if UNJUDGED in fix.overrides else ''})"
        for fix in row.fixes
    )
    return f"{head}: {ways}"


def _on_several(row: Row, gpu: Gpu) -> str:
    """What each of 2, 4, 8 … GPUs would hold of a trial, and how many are enough."""
    lines: list[str] = []
    enough: Share | None = None
    for share in row.shares:
        if share.prediction is None:
            lines.append(f"  - {share.processes}: {share.problem}")
            continue
        fits = gpu.fits(share.prediction.peak)
        enough = share if fits else enough
        lines.append(
            f"  - {share.processes}: each needs {gb(needed(share.prediction.peak))} GB of {gb(gpu.bytes)}, set by "
            f"{share.prediction.phase}{'' if fits else ': too much'}"
        )
    answer = "on none of these" if enough is None else f"on {enough.processes}, with `{' '.join(enough.overrides)}`"
    return "\n".join([f"- {row.label}: {answer}", *lines])


def _title(words: str, markdown: bool) -> str:
    return f"## {words}" if markdown else words


def _table(head: Sequence[str], body: Sequence[Sequence[str]], markdown: bool) -> str:
    if markdown:
        return formatting.table(head, body)
    align = ["left", *["right"] * (len(head) - 1)]
    return tabulate(body, headers=head, tablefmt="simple", disable_numparse=True, colalign=align)


def gb(size: float | None) -> str:
    """Bytes in GB, with three significant digits or so."""
    if size is None:
        return formatting.MISSING
    value = size / GB
    return f"{value:,.1f}" if value >= 9.95 else f"{value:.2f}" if value >= 0.0995 else f"{value:.3f}"
