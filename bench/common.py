"""What the benches share: a base on disk, timing, and one line per ratio."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from harness.tasks.arithmetic import Arithmetic

RATE = 2e-3
RECIPE = (f"train.learning_rate={RATE}", "train.batch_size=32")
"""What ``bare_dpo.py`` does, as overrides of the harness."""


def workdir() -> Path:
    """A scratch folder."""
    return Path(tempfile.mkdtemp(prefix="harness-bench-"))


def harness(arguments: Sequence[str], cwd: Path, cache: Path, code: Path | None = None) -> float:
    """Run a harness command line, by the code of another checkout where one is given; wall seconds."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "harness", *arguments],
        cwd=cwd,
        env={**os.environ, "HARNESS_CACHE": str(cache), **({} if code is None else {"PYTHONPATH": str(code)})},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"harness {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - started


def rows_file(cwd: Path) -> Path:
    """The embedded task's training pairs, as a file that a script reads."""
    path = cwd / "rows.jsonl"
    path.write_text("\n".join(json.dumps(dict(row)) for row in Arithmetic().load().train_pairs))
    return path


def bare(base: Path, rows: Path, steps: int, *, rank: int, beta: float) -> str:
    """Run ``bare_dpo.py`` once; what it printed."""
    script = str(Path(__file__).with_name("bare_dpo.py"))
    arguments = [str(value) for value in (base, rows, steps, rank, 0, beta, RATE)]
    return subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, check=True).stdout


def base_model(cache: Path, cwd: Path) -> Path:
    """Make sure that the embedded base is cached; its folder."""
    harness(["algo=none", "eval=none", "sweep=base"], cwd, cache)
    return next(p.parent for p in (cache / "sft").glob("*/config.json"))


def results(folder: Path) -> list[dict[str, float]]:
    """Metrics of the trials below a sweep's folder, by name."""
    return [json.loads(path.read_text())["metrics"] for path in sorted(folder.glob("*/result.json"))]


def metrics(folder: Path) -> dict[str, float]:
    """Metrics of the one trial below a sweep's folder."""
    return results(folder)[0]


def ratio_line(name: str, ours: Sequence[float], theirs: Sequence[float], limit: float) -> float:
    """Print medians and the median of the paired ratios."""
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    print(
        f"{name}: harness {statistics.median(ours):.2f} s, bare {statistics.median(theirs):.2f} s, "
        f"ratio {ratio:.3f} (limit {limit}) {'ok' if ratio <= limit else 'MISSED'}  [{len(ours)} pairs]",
        flush=True,
    )
    return ratio
