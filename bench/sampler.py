"""How much of one core does the memory sampler take at 20 Hz? Prints a ratio; about 20 s.

The sampled worker is what the runner starts: a child forked from a server with torch, transformers and trl
imported, which then touches memory of its own until it holds about 1 GB.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness.telemetry.host import resident  # noqa: E402
from harness.telemetry.sampler import MemorySampler  # noqa: E402

WATCHED_S = 9.0
OWN_MB = 500
SERVER = f"""
import os, sys, torch, transformers, trl
from trl import DPOTrainer
child = os.fork()
if child == 0:
    own = bytearray({OWN_MB} * 10**6)
    own[::4096] = bytes([1]) * len(own[::4096])
    print(os.getpid(), flush=True)
sys.stdin.read()
os._exit(0)
"""


def main() -> None:
    """Sample the worker and print what that cost."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    ) as server:
        pid = int(server.stdout.readline())
        rows: list[dict] = []
        wall, cpu = time.perf_counter(), time.process_time()
        with MemorySampler(pid, emit=rows.append, env=environment) as sampler:
            time.sleep(WATCHED_S)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        memory, summary = resident(pid), sampler.summary()
        server.stdin.close()
    print(f"worker: {memory.resident_bytes / 1e6:.0f} MB resident, {memory.private_bytes / 1e6:.0f} MB private")
    print(f"seen:   peak {summary.peak_mb:.0f} MB ({summary.lens}), {summary.samples / wall:.1f} samples per s")
    print(f"cost:   {cpu / wall:.4f} of one core")


if __name__ == "__main__":
    main()
