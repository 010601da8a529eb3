"""One optimizer step of the longest rows, from which nothing is kept: memory runs out now or not at all.

Runs in a process of its own, in place of a trial's story.
"""

from __future__ import annotations

from typing import Any

from harness.rehearsal.step import Scene, rehearse
from harness.store.journal import Journal
from harness.telemetry.clock import PhaseClock
from harness.trial.assemble import assemble
from harness.trial.checks import check_data
from harness.trial.context import prepare_ground
from harness.trial.job import Job
from harness.trial.records import report_clock
from harness.trial.worker import seed_everything


def run(job: Job, journal: Journal) -> None:
    """Prepare as the trial would, then take the step."""
    clock = PhaseClock(lambda kind, data: journal.write(kind, **data))
    with clock.phase("prepare"):
        setup = assemble(job.plain)
        ground = prepare_ground(setup, check_data(setup), job, journal)
        folders = ground.reward_folders(journal)
        seed_everything(setup.seed)

    def load(quantization: Any | None) -> Any:
        return setup.model.load(ground.source, dtype=ground.dtype, device=ground.device, quantization=quantization)

    scene = Scene(
        setup,
        ground.data,
        ground.tokenizer,
        ground.rows,
        ground.place,
        ground.device == "cuda",
        bare=ground.bare_rows,
        load=load,
        folders=folders,
    )
    with clock.phase("train"):
        rehearse(scene, setup.model.configuration(ground.source), evaluation=False)
    report_clock(clock, journal)
