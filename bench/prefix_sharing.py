"""Prompts read once against prompts read for every completion, in the harness and in TRL, on the same real rows.

    python bench/prefix_sharing.py pairs.jsonl problems.jsonl [--pairs 3] [--model smollm2]
    python bench/prefix_sharing.py pairs.jsonl problems.jsonl --folder FOLDER [--trl112 FOLDER]

``pairs.jsonl`` is what ``task=preferences`` reads, ``problems.jsonl`` what ``task=problems`` does. Each run takes every
one of a few rows once. With the folder of a model DPO and GRPO are also run by TRL alone (``bare_trl.py``), and PPO
by the last TRL that had it, where its folder is given (``bare_ppo.py``; ``pip install --no-deps --target FOLDER
trl==1.12.0``).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import harness, metrics, workdir

SIDES = {"shared": "train.share_prefix=true", "apart": "train.share_prefix=false"}
STEPS, BATCH, GROUP = 2, 16, 8
COMMON = (
    "eval=none", "adapter=lora", "train.save=none", "train.epochs=null", f"train.steps={STEPS}",
    f"train.batch_size={BATCH}", "train.logging_steps=1", "train.max_length=512", "runner.predict=false",
)  # fmt: skip
ONLINE = ("train.max_completion_length=64", "reward=length", "train.micro_batch_size=8")
"""Completions of 64 tokens; a base that answers nothing right learns as fast from their length."""
NOT_AGAIN = "train.gradient_checkpointing=false"
"""TRL's PPO keeps all activations, whatever it is told."""
BARE = {"dpo": 4, "grpo": 8, "ppo": 8}
"""What TRL runs alone, and its rows of a micro-batch."""


def recipes(pairs: Path, problems: Path, groups: Path, held_out: tuple[Path, Path]) -> dict[str, tuple[str, ...]]:
    """What is timed, and how."""
    preferences = (
        "task=preferences",
        f"task.path={pairs}",
        f"task.eval_path={held_out[0]}",
        "train.micro_batch_size=4",
    )
    prompts = ("task=problems", f"task.eval_path={held_out[1]}", *ONLINE)
    return {
        "dpo": ("algo=dpo", "algo.share_reference=false", *preferences),
        "kto": ("algo=kto", "algo.share_reference=false", *preferences),
        "orpo": ("algo=orpo", *preferences),
        "grpo": ("algo=grpo", f"algo.num_generations={GROUP}", f"task.path={groups}", *prompts),
        "ppo": ("algo=ppo", "algo.minibatches=1", "algo.epochs=1", NOT_AGAIN, f"task.path={problems}", *prompts),
    }


def some(path: Path, count: int, to: Path, formed: Any = dict, start: int = 0) -> Path:
    """So many rows from all over a file, as a file."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    seen = {json.dumps(row.get("prompt", row.get("question"))): row for row in rows}  # one of each prompt
    distinct = list(seen.values())
    chosen = distinct[start :: max(1, len(distinct) // count)][:count]
    to.write_text("".join(json.dumps(formed(row)) + "\n" for row in chosen), encoding="utf-8")
    return to


def told(row: dict[str, Any]) -> dict[str, Any]:
    """A row as messages, as the harness shows text to a model with a chat template."""
    asked = {"prompt": [{"role": "user", "content": row.get("prompt", row.get("question"))}]}
    replies = {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected") if side in row}
    return {**asked, **replies}


def bare(algo: str, folder: Path, rows: Path, trl112: Path | None) -> dict[str, float]:
    """TRL alone."""
    script, which, env = "bare_trl.py", [algo], dict(os.environ)
    if algo == "ppo":
        script, which = "bare_ppo.py", []
        env |= {"TRL_EXPERIMENTAL_SILENCE": "1", "PYTHONPATH": f"{trl112}{os.pathsep}{env.get('PYTHONPATH', '')}"}
    arguments = [*which, *(str(v) for v in (folder, rows, STEPS, BATCH, BARE[algo]))]
    command = [sys.executable, str(Path(__file__).with_name(script)), *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"TRL's {algo}: {done.stdout[-500:]}{done.stderr[-2000:]}")
    line = next(line for line in done.stdout.splitlines() if line.startswith("train_s="))
    found = {name: float(value) for name, value in (part.split("=") for part in line.split())}
    return {"update_s": found["train_s"] - found["rollout_s"], "rollout_s": found["rollout_s"]}


def compared(name: str, ours: Sequence[float], theirs: Sequence[float], against: str) -> None:
    """Print medians, and the median of the paired ratios."""
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    medians = statistics.median(ours), statistics.median(theirs)
    print(
        f"{name}: {medians[0]:.1f} s, {against} {medians[1]:.1f} s, ratio {ratio:.2f} [{len(ours)} pairs]", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preferences", type=Path)
    parser.add_argument("problems", type=Path)
    parser.add_argument("--pairs", type=int, default=3, help="of runs")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--folder", type=Path, help="of a model, for TRL too")
    parser.add_argument("--trl112", type=Path, help="a folder with TRL 1.12, for its PPO")
    parser.add_argument("--algos", default="dpo,kto,orpo,grpo,ppo")
    parser.add_argument("--apart", action=argparse.BooleanOptionalAction, default=True, help="ours without sharing too")
    options = parser.parse_args()
    cwd = workdir()
    cache = Path(os.environ.get("HARNESS_CACHE", cwd / "cache"))
    taken = {"dpo": (options.preferences, STEPS * BATCH), "grpo": (options.problems, STEPS * BATCH // GROUP),
             "ppo": (options.problems, STEPS * BATCH)}  # fmt: skip
    files = {name: some(path, count, cwd / f"{name}.jsonl") for name, (path, count) in taken.items()}
    known = recipes(
        files["dpo"],
        files["ppo"],
        files["grpo"],
        (
            some(options.preferences, 5, cwd / "held.jsonl", start=1),
            some(options.problems, 5, cwd / "asked.jsonl", start=1),
        ),
    )
    model = (f"model={options.model}",) if options.folder is None else ("model=hf", f"model.path={options.folder}")
    for name in options.algos.split(","):
        alone = options.folder is not None and name in BARE and (name != "ppo" or options.trl112 is not None)
        sides = [*(side for side in SIDES if options.apart or side == "shared"), *(["TRL"] if alone else [])]
        found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
        for i in range(options.pairs):
            for side in sides[:: -1 if i % 2 else 1]:
                if side == "TRL":
                    path, count = taken[name]
                    rows = some(path, count, cwd / f"{name}-told.jsonl", told)
                    found[side].append(bare(name, options.folder, rows, options.trl112))
                    continue
                sweep = f"{name}-{side}-{i}"
                harness([*known[name], "task.overlap=drop", *COMMON, *model, SIDES[side], f"sweep={sweep}"], cwd, cache)
                one = metrics(cwd / "outputs" / sweep)
                parts = {"update_s": one["time/train_s"], "rollout_s": one.get("time/rollout_s", 0.0)}
                found[side].append(parts | {"read": one.get("throughput/computed_share", 1.0)})
        for other in sides[1:]:
            for part in ("step", "rollout", "update") if found["shared"][0]["rollout_s"] else ("step",):
                ours, theirs = ([_seconds(run, part) for run in found[side]] for side in ("shared", other))
                compared(f"{name}, {part}", ours, theirs, other)
        print(f"{name}: tokens read {statistics.median(run['read'] for run in found['shared']):.2f} of the batches")


def _seconds(run: dict[str, float], part: str) -> float:
    return run["update_s"] + run["rollout_s"] if part == "step" else run[f"{part}_s"]


main()
