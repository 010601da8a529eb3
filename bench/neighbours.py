"""What waiting threads cost beside a neighbour that holds cores, and what a spin of bounded length saves.

Optimizer steps a second of the embedded model, in processes that differ in their environment alone, one after the
other and over again: with every core free, beside one busy process, and beside as many as there are cores. About six
minutes on two cores that are idle otherwise.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

WARM_S, MEASURED_S = 1.0, 3.0
WAYS = {
    "as torch has it": {},
    "waits passively": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
    **{f"spins {n:,}": {"GOMP_SPINCOUNT": str(n)} for n in (1_000, 3_000, 10_000, 30_000)},
}


def child(rows: int) -> None:
    """Train; print steps a second."""
    import torch

    from harness.models.tiny import Tiny

    torch.manual_seed(0)
    model = Tiny().fresh()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ids = torch.randint(3, 20, (rows, 28))
    begun, steps = time.perf_counter(), 0
    while time.perf_counter() - begun < WARM_S + MEASURED_S:
        if time.perf_counter() - begun < WARM_S:
            steps, since = 0, time.perf_counter()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
    print(steps / (time.perf_counter() - since))


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Processes that hold a core each."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def measured(environment: dict[str, str], rows: int) -> float:
    """Steps a second of one child."""
    command = [sys.executable, __file__, "--child", str(rows)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    """Print a table for each number of neighbours: median steps a second, and as a share of torch's own way alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", type=int)
    parser.add_argument("--rows", type=int, default=32, help="rows of 28 tokens in a step")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    if asked.child:
        child(asked.child)
        return
    alone = 0.0
    for count in (0, 1, os.cpu_count() or 1):
        found: dict[str, list[float]] = {name: [] for name in WAYS}
        with neighbours(count):
            for _ in range(asked.rounds):
                for name, environment in WAYS.items():
                    found[name].append(measured(environment, asked.rows))
        alone = alone or statistics.median(found["as torch has it"])
        print(f"{count} neighbours, {asked.rows} rows:")
        for name, speeds in found.items():
            speed = statistics.median(speeds)
            print(f"  {name:18s} {speed:6.1f} steps/s   {speed / alone:.2f}", flush=True)


if __name__ == "__main__":
    main()
