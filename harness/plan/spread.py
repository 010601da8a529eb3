"""On how many GPUs a trial fits, found by trying. No torch here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.base.errors import UserError, UserErrors
from harness.plan.fixes import harmless
from harness.plan.gpus import Gpu
from harness.plan.predict import Prediction, Target, predict
from harness.trial.assemble import Setup

STRATEGIES = ("fsdp2", "ddp")
"""What several processes can do with a policy: in pieces each holds less, and not every trial can be."""


@dataclass(frozen=True)
class Share:
    """What each of several GPUs would hold of a trial.

    Attributes:
        processes: so many GPUs.
        overrides: for the command line.
        prediction: of one of them; None where the trial cannot be split in so many.
        problem: why.
    """

    processes: int
    overrides: tuple[str, ...]
    prediction: Prediction | None
    problem: str = ""


def spread(
    composed: Callable[[Sequence[str]], Setup], gpu: Gpu, most: int, target: Target, say: Callable[[str], object]
) -> list[Share]:
    """Twice as many GPUs each time, until the trial fits or there are no more.

    Args:
        composed: the trial with more overrides.
        gpu: each of them.
        most: so many there are.
        target: as the trial was predicted.
        say: told what is tried: each try may take half a minute.
    """
    found: list[Share] = []
    for processes in numbers(most):
        say(f"  trying {processes} GPUs")
        share = _share(composed, processes, target)
        if share.prediction is not None and not gpu.fits(share.prediction.peak):
            share = _eased(share, composed, gpu, target)
        found.append(share)
        if share.prediction is not None and gpu.fits(share.prediction.peak):
            break
    return found


def numbers(most: int) -> list[int]:
    """2, 4, 8 … and the most there are."""
    return sorted({2**k for k in range(1, most.bit_length()) if 2**k <= most} | {most} - {1})


def _eased(share: Share, composed: Callable[[Sequence[str]], Setup], gpu: Gpu, target: Target) -> Share:
    """The same with smaller batches where the result stays what it is, if it then fits."""
    assert share.prediction is not None
    for change in harmless(composed(share.overrides), share.prediction):
        keys = {override.partition("=")[0] for override in change}
        overrides = (*(o for o in share.overrides if o.partition("=")[0] not in keys), *change)
        answer = _tried(composed, overrides, target)
        if isinstance(answer, Prediction) and gpu.fits(answer.peak):
            return Share(share.processes, overrides, answer)
    return share


def _tried(
    composed: Callable[[Sequence[str]], Setup], overrides: Sequence[str], target: Target
) -> Prediction | UserError | UserErrors:
    try:
        return predict([composed(overrides)], target)[0]
    except (UserError, UserErrors) as error:
        return error


def _share(composed: Callable[[Sequence[str]], Setup], processes: int, target: Target) -> Share:
    problem, train = "", composed(()).train
    batches: tuple[str, ...] = ()
    if train.micro_batch_size and train.batch_size and train.batch_size >= processes:
        part = math.gcd(train.micro_batch_size, train.batch_size // processes)
        batches = () if part == train.micro_batch_size else (f"train.micro_batch_size={part}",)
    for strategy in STRATEGIES:
        overrides = (f"parallel.processes={processes}", f"parallel.strategy={strategy}", *batches)
        answer = _tried(composed, overrides, target)
        if isinstance(answer, Prediction):
            return Share(processes, overrides, answer)
        problem = str(answer)
    return Share(processes, (), None, problem)
