#!/usr/bin/env python
"""The predicted table of experiments/memory_matrix: every algorithm, three adapters, four shapes, two lengths.

python scripts/memory_table.py
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHAPES = ("qwen-0.5b", "llama-1b", "llama-8b", "llama-70b")
LENGTHS = (1024, 4096)
ALGOS = sorted(p.stem for p in (ROOT / "conf" / "algo").glob("*.yaml") if p.stem not in ("none", "sft"))
ADAPTERS = ("full", "lora", "qlora")


def main() -> None:
    """Predict, and print the table."""
    command = [
        sys.executable, "-m", "harness", "plan", "-m", f"algo={','.join(ALGOS)}", f"adapter={','.join(ADAPTERS)}",
        f"model={','.join(f'shape/{shape}' for shape in SHAPES)}", f"train.max_length={','.join(map(str, LENGTHS))}",
        "train.max_completion_length=512", "eval=none", "--lengths", "limit", "--format", "json",
    ]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=True)
    peaks = {t["trial"]: t["predicted_peak_bytes"] for t in json.loads(done.stdout)["trials"] if "phases" in t}
    print("| algo | adapter | " + " | ".join(f"{s}, {n:,}" for s in SHAPES for n in LENGTHS) + " |")
    print("| :--- | :--- |" + " ---: |" * (len(SHAPES) * len(LENGTHS)))
    for algo in ALGOS:
        for adapter in ADAPTERS:
            cells = []
            for shape in SHAPES:
                for length in LENGTHS:
                    wanted = (f"{algo}-{adapter}-", f"model=shape/{shape}", f"train.max_length={length}")
                    found = [p for label, p in peaks.items() if all(w in f"{label} " for w in wanted)]
                    cells.append(f"{found[0] / 1e9:,.1f}" if len(found) == 1 else "–")
            print(f"| {algo} | {adapter} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
