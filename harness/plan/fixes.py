"""What to change about a trial that does not fit, found by trying. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from harness.base.errors import UserError, UserErrors
from harness.plan.gpus import Gpu
from harness.plan.predict import Prediction, Target, predict
from harness.trial.assemble import Setup

TOLD = 3
"""Changes that fit after which no more are looked for."""
UNJUDGED = "eval=none"
"""The last resort: train here and judge elsewhere."""


@dataclass(frozen=True)
class Fix:
    """A change after which the trial fits.

    Attributes:
        overrides: for the command line.
        peak: predicted, in bytes.
    """

    overrides: tuple[str, ...]
    peak: float


def fixes(
    setup: Setup,
    prediction: Prediction,
    gpu: Gpu,
    target: Target,
    composed: Callable[[Sequence[str]], Setup],
    say: Callable[[str], None] = lambda _: None,
) -> tuple[list[Fix], Fix | None]:
    """Changes that make the trial fit, the mildest first; where none does, the one that comes nearest.

    Args:
        setup: the trial.
        prediction: its own.
        gpu: too small for it.
        target: as it was predicted.
        composed: the trial with more overrides.
        say: told what is tried: each try may take half a minute.
    """
    found: list[Fix] = []
    nearest: Fix | None = None
    for change in candidates(setup, prediction):
        if len(found) == TOLD:
            break
        if any(set(fix.overrides) <= set(change) for fix in found):
            continue  # half of it was enough
        say(f"  trying {' '.join(change)}")
        try:
            answer = predict([composed(change)], target)[0]
        except (UserError, UserErrors):
            continue  # such as a micro-batch that the algorithm cannot work with
        if not isinstance(answer, Prediction):
            continue
        if gpu.fits(answer.peak):
            found.append(Fix(change, answer.peak))
        elif nearest is None or answer.peak < nearest.peak:
            nearest = Fix(change, answer.peak)
    return found, None if found else nearest


def harmless(setup: Setup, prediction: Prediction) -> Iterator[tuple[str, ...]]:
    """Changes that leave the result as it is: smaller batches where the peak is, and checkpointing."""
    train = setup.train
    if prediction.phase in ("baseline", "reference", "evaluate") and setup.eval.batch_size > 1:
        yield from ((f"eval.batch_size={size}",) for size in (setup.eval.batch_size // 8, 1) if size)
    checkpoint = () if train.gradient_checkpointing else ("train.gradient_checkpointing=true",)
    if checkpoint:
        yield checkpoint
    micro = train.micro_batch_size or 1
    sizes = [size for size in (micro // 2, micro // 4, 1) if 0 < size < micro]
    yield from ((f"train.micro_batch_size={size}", *checkpoint) for size in dict.fromkeys(sizes))


def candidates(setup: Setup, prediction: Prediction) -> Iterator[tuple[str, ...]]:
    """Changes worth trying: first those that leave the result as it is, then those that change what is learned.

    The last is not to judge: what is trained may fit where its samples and their scores do not.
    """
    train, smallest = setup.train, ()
    for change in harmless(setup, prediction):
        smallest = change if change[0].startswith("train.micro_batch_size=") else smallest
        yield change
    for adapter in {"full": ("lora", "qlora"), "lora": ("qlora",)}.get(setup.adapter.name, ()):
        yield (f"adapter={adapter}",)
        if smallest:
            yield (f"adapter={adapter}", *smallest)
    shorter = (f"train.max_length={train.max_length // 2}",)
    if setup.algo.family == "online":
        shorter += (f"train.max_completion_length={max(1, train.max_completion_length // 2)}",)
    yield shorter
    yield (*shorter, *smallest)
    if setup.eval.active:
        yield (UNJUDGED,)
