"""The tracker against the operating system: what a step's tensors take is what its process grows by.

In a process whose C library gives freed blocks back at once. A trial's own holds on to them, because that is faster
(``harness/trial/heap.py``); what it holds beyond its tensors is a matter of the heap, not of the count.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest

from harness.trial.heap import _glibc
from tests.rehearsal.growing import from_the_first_step, grown, start

ALGOS, ADAPTERS = ("ppo", "dpo", "ipo", "kto", "grpo"), ("full", "lora", "qlora")
STEP = (
    "model=shape/llama-10m", "eval=none", "task.pairs=96", "train.batch_size=96", "train.micro_batch_size=96",
    "train.max_length=96", "train.max_completion_length=48",
)  # fmt: skip
pytestmark = pytest.mark.skipif(_glibc() is None, reason="glibc only")


def growth(overrides: tuple[str, ...]) -> tuple[float, float]:
    """From the moment when a trainer is there to the end of its step: bytes by the tracker, and resident."""
    import torch

    from harness.config.compose import compose, hydra_config
    from harness.models.precision import place_on
    from harness.rehearsal.step import Scene, rehearse
    from harness.tasks.conversation import Style
    from harness.trial.assemble import assemble
    from harness.trial.checks import check_data

    with hydra_config():
        setup = assemble(compose([*STEP, *overrides]))

    def load(quantization: Any) -> Any:
        return setup.model.load(None, dtype=torch.float32, device="cpu", quantization=quantization)

    place = place_on(setup.model, setup.adapter, setup.train, "cpu", trains=True, bf16=False)
    rows = Style().rows
    scene = Scene(setup, check_data(setup), setup.model.tokenizer(None), rows, place, fill=True, load=load)
    with from_the_first_step() as seen:
        timeline = rehearse(scene, setup.model.configuration(), evaluation=False)
    return grown(timeline, seen)


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, get_context("spawn"), start) as pool:
        pool.submit(growth, ("algo=dpo", "adapter=full")).result()  # libraries make their buffers once
        yield pool


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("algo", ALGOS)
def test_a_process_grows_by_what_was_counted(elsewhere, algo, adapter):
    counted, resident = elsewhere.submit(growth, (f"algo={algo}", f"adapter={adapter}")).result()
    assert counted > 300e6, "so little that it shows nothing"
    assert counted == pytest.approx(resident, rel=0.06)


@pytest.mark.slow
def test_it_grows_by_what_the_chunks_of_a_rollout_were_counted_for(elsewhere):
    long = ("train.micro_batch_size=1", "train.max_length=160", "train.max_completion_length=128")
    chunk = ("train.batch_size=256", "train.rollout_batch=256")
    counted, resident = elsewhere.submit(growth, ("algo=grpo", "adapter=lora", *long, *chunk)).result()
    assert counted > 300e6, "so little that it shows nothing"
    assert counted == pytest.approx(resident, rel=0.05)
