"""PPO against the last TRL that had it (1.12), in turn: same base, reward, completions, epochs and batch.

    pip install --no-deps --target FOLDER trl==1.12.0
    python bench/ppo_peer.py FOLDER

Three seeds of the embedded task, full fine-tuning: true reward and wall time, of the whole training and of its
updates alone. Then peak memory, full and LoRA, on random weights at a shape where weights dominate.
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import base_model, workdir

SHAPE = {"vocab_size": 8192, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12,
         "num_attention_heads": 12, "num_key_value_heads": 12, "max_position_embeddings": 128,
         "tie_word_embeddings": True}  # fmt: skip


def side(which: str, folder: str, **options: Any) -> dict[str, float]:
    script = str(Path(__file__).with_name("ppo_side.py"))
    env = {**os.environ, "TRL_EXPERIMENTAL_SILENCE": "1"}
    if which == "theirs":
        env["PYTHONPATH"] = os.pathsep.join([folder, env.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, script, which, json.dumps(options)], env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{which}: {done.stdout[-500:]}{done.stderr[-2000:]}")
    return json.loads(done.stdout.split("RESULT ")[1])


def main() -> None:
    folder = sys.argv[1]
    cwd = workdir()
    base = str(base_model(Path(os.environ.get("HARNESS_CACHE", cwd / "cache")), cwd))
    found: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
    for seed in range(3):
        order = ("ours", "theirs") if seed % 2 else ("theirs", "ours")
        for which in order:
            result = side(
                which,
                folder,
                base=base,
                adapter="full",
                seed=seed,
                beta=0.05,
                rate=3e-4,
                batch=64,
                rollouts=100,
                judge=True,
            )
            found[which].append(result)
            print(f"  seed {seed} {which}: " + ", ".join(f"{k} {v:.3f}" for k, v in result.items()), flush=True)
    for name in ("true_reward", "correct", "train_s", "update_s"):
        a, b = ([r[name] for r in found[which]] for which in ("ours", "theirs"))
        print(
            f"{name}: ours {statistics.fmean(a):.3f}, TRL 1.12 {statistics.fmean(b):.3f}, "
            f"median paired ratio {statistics.median(x / y for x, y in zip(a, b, strict=True)):.3f}",
            flush=True,
        )
    for adapter, limit in (("full", 1.0), ("lora", 0.6)):
        options = {"shape": SHAPE, "adapter": adapter, "seed": 0, "beta": 0.05, "rate": 1e-5, "batch": 8, "rollouts": 2}
        peaks = {w: side(w, folder, base=None, judge=False, **options)["peak_mb"] for w in ("ours", "theirs")}
        print(
            f"peak memory, {adapter}: ours {peaks['ours']:,.0f} MB, TRL 1.12 {peaks['theirs']:,.0f} MB, "
            f"ratio {peaks['ours'] / peaks['theirs']:.2f} (limit {limit})",
            flush=True,
        )


if __name__ == "__main__":
    main()
