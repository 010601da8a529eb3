"""A reward model that reads a prompt once for its eight completions, against one that reads it eight times, in turn.

    python bench/reward_scoring.py FOLDER problems.jsonl [--pairs 5]

``FOLDER`` holds a model with a chat template, which gets a head of no value; ``problems.jsonl`` has questions and
answers, and of these the first 64 tokens stand for completions.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from common import workdir
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from harness.rewards.base import Desk
from harness.rewards.model import ModelReward

PROMPTS, GROUP, TOKENS = 8, 8, 64


def headed(folder: Path, to: Path) -> Path:
    """The model under a head of one label."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(to)
    tokenizer.save_pretrained(to)
    return to


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("problems", type=Path)
    parser.add_argument("--pairs", type=int, default=5, help="of measurements")
    options = parser.parse_args()
    folder = headed(options.folder, workdir() / "headed")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    problems = [json.loads(line) for line in options.problems.read_text(encoding="utf-8").splitlines()]
    asked = [{"prompt": [{"role": "user", "content": p["question"]}]} for p in problems[:PROMPTS] for _ in range(GROUP)]
    said = [tokenizer.decode(tokenizer(p["answer"])["input_ids"][:TOKENS]) for p in problems[-len(asked) :]]

    def told(rows: Any) -> list[dict[str, Any]]:
        return [{**row, "completion": [{"role": "assistant", "content": row["completion"]}]} for row in rows]

    def opened(policy: Any) -> Any:
        desk = Desk(policy, tokenizer, told, {}, "cpu", torch.float32)
        return ModelReward(path=str(folder), score_batch_size=32, normalize=False).open(desk)

    apart = AutoModelForCausalLM.from_pretrained(options.folder)  # a policy that shares nothing, so the reward does not
    sides = {"shared": opened(None), "apart": opened(apart)}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    scores = {}
    for i in range(options.pairs):
        for name in list(sides)[:: -1 if i % 2 else 1]:
            begun = time.perf_counter()
            scores[name] = sides[name](asked, said, [True] * len(said))
            seconds[name].append(time.perf_counter() - begun)
    ratio = statistics.median(a / b for a, b in zip(seconds["shared"], seconds["apart"], strict=True))
    shared, alone = (statistics.median(seconds[name]) for name in sides)
    apart_by = max(abs(a - b) for a, b in zip(scores["shared"], scores["apart"], strict=True))
    print(
        f"reward scoring: shared {shared:.1f} s, apart {alone:.1f} s, ratio {ratio:.2f}; scores differ by at most "
        f"{apart_by:.1e} [{options.pairs} pairs]"
    )


main()
