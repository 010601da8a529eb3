"""What the trials of a sweep are expected to need on this machine. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import psutil

from harness.base.errors import UserError
from harness.plan.gpus import PROCESS_BYTES, gpu_present
from harness.plan.predict import Prediction, Target, lighter, predict
from harness.runner.run_trial import Runner
from harness.store.memory_metrics import Expected
from harness.sweep.expand import Point
from harness.telemetry.host import MB


def expectations(
    points: Sequence[Point], runner: Runner, say: Callable[[str], object]
) -> dict[str, Expected | UserError]:
    """By trial id: what it is predicted to need and what there is, or why that cannot be said."""
    gpu = gpu_present() if runner.device != "cpu" else None
    cuda = runner.device == "cuda" or gpu is not None
    limit, where = _limit(runner) if gpu is None else (gpu.bytes, gpu.name)
    found: dict[str, Expected | UserError] = {}
    target = Target(cuda)

    def fits(answer: Prediction) -> bool:
        return answer.needed(cuda=cuda) <= limit

    for point, answer in zip(points, predict([p.setup for p in points], target, say), strict=True):
        baseline = None
        if isinstance(answer, Prediction) and (other := lighter(point.setup, answer, fits)) is not None:
            again = predict([other], target, say)[0]
            if isinstance(again, Prediction) and fits(again):
                answer, baseline = again, other.eval.baseline
        if isinstance(answer, Prediction):
            answer = Expected(answer.peak, answer.needed(cuda=cuda), answer.phase, limit, where, baseline)
        found[point.trial.trial_id] = answer
    return found


def _limit(runner: Runner) -> tuple[float, str]:
    """Of a trial without a GPU: the cap that it runs under, else the machine's memory."""
    if runner.memory_limit_mb is not None:
        return runner.memory_limit_mb * MB + PROCESS_BYTES, "runner.memory_limit_mb"
    return psutil.virtual_memory().total, "this machine"
