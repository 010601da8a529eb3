"""The tracker against the operating system: what a step's tensors take is what its process grows by.

In a process whose C library gives freed blocks back at once. A trial's own holds on to them, because that is faster
(``harness/trial/heap.py``); what it holds beyond its tensors is a matter of the heap, not of the count.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any
from unittest.mock import patch

import pytest

from harness.trial.heap import M_MMAP_THRESHOLD, _glibc, give_back

ALGOS, ADAPTERS = ("ppo", "dpo", "ipo", "kto", "grpo"), ("full", "lora", "qlora")
STEP = (
    "model=shape/llama-10m", "eval=none", "task.pairs=80", "train.batch_size=32", "train.micro_batch_size=32",
    "train.max_length=96", "train.max_completion_length=48",
)  # fmt: skip

pytestmark = pytest.mark.skipif(_glibc() is None, reason="glibc only")


def start() -> None:
    """Of the measuring process: one thread, and blocks above 64 KiB are the kernel's again once freed."""
    import torch

    torch.set_num_threads(1)
    library = _glibc()
    assert library is not None and library.mallopt(M_MMAP_THRESHOLD, 64 * 1024)


def growth(overrides: tuple[str, ...]) -> tuple[float, float]:
    """From the moment when a trainer is there to the end of its step: bytes by the tracker, and resident."""
    import torch

    from harness.config.compose import compose, hydra_config
    from harness.models.precision import place_on
    from harness.rehearsal.step import Scene, rehearse
    from harness.rehearsal.watch import Steady
    from harness.tasks.conversation import Style
    from harness.telemetry.host import peak_resident_bytes, reset_peak, resident_bytes
    from harness.trial.assemble import assemble
    from harness.trial.checks import check_data

    with hydra_config():
        setup = assemble(compose([*STEP, *overrides]))

    def load(quantization: Any) -> Any:
        return setup.model.load(None, dtype=torch.float32, device="cpu", quantization=quantization)

    seen: dict[str, float] = {}
    begin = Steady.on_train_begin

    def begun(self: Steady, *args: Any, **options: Any) -> None:
        gc.collect()
        give_back()
        assert reset_peak()
        seen["resident"] = resident_bytes("self") or 0
        seen["counted"] = sum(self.tracker.live.values())
        seen["from"] = len(self.tracker.timeline().records)
        begin(self, *args, **options)

    place = place_on(setup.model, setup.adapter, setup.train, "cpu", trains=True, bf16=False)
    rows = Style().rows
    scene = Scene(setup, check_data(setup), setup.model.tokenizer(None), rows, place, fill=True, load=load)
    with patch.object(Steady, "on_train_begin", begun):
        timeline = rehearse(scene, setup.model.configuration(), evaluation=False)
    counted = timeline.records[int(seen["from"]) :].sum(axis=1).max()
    return counted - seen["counted"], (peak_resident_bytes("self") or 0) - seen["resident"]


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
    assert counted > 400e6, "so little that it shows nothing"
    assert counted == pytest.approx(resident, rel=0.06)
