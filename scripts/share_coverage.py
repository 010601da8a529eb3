"""How often the interval of a share holds the truth: simulated over 5 to 500 prompts.

    python scripts/share_coverage.py --draws 2000

Pairs come in prompts of one, or of one to eight; of each prompt the chance of a right pair is its own, from a beta
distribution whose correlation within a prompt is given. Intervals are those of ``harness.base.calibration.share``.
"""

from __future__ import annotations

import argparse

import numpy as np

from harness.base.calibration import share

PROMPTS = (5, 10, 30, 100, 500)
KINDS = {
    "one pair each": (1, 0.0),
    "1 to 8 pairs": (8, 0.0),
    "1 to 8, correlation ½": (8, 0.5),
    "1 to 8, all of a prompt agree": (8, 1.0),
}
TRUTHS = (0.5, 0.8, 0.95)


def coverage(prompts: int, most: int, correlation: float, truth: float, draws: int, seed: int = 0) -> float:
    """Share of draws whose interval holds ``truth``."""
    rng, held = np.random.default_rng(seed), 0
    for _ in range(draws):
        clusters = np.repeat(np.arange(prompts), rng.integers(1, most + 1, prompts))
        if correlation == 1:
            values = (rng.random(prompts) < truth).astype(float)[clusters]
        else:
            scale = 1 / correlation - 1 if correlation else 0.0
            chance = rng.beta(truth * scale, (1 - truth) * scale, prompts) if scale else np.full(prompts, truth)
            values = (rng.random(len(clusters)) < chance[clusters]).astype(float)
        found = share(values.tolist(), clusters.tolist())
        held += found.low is not None and found.high is not None and found.low <= truth <= found.high
    return held / draws


def main() -> None:
    """Print the table of docs/metrics.md: the lowest and highest coverage over the true shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2000)
    options = parser.parse_args()
    print("| pairs | " + " | ".join(f"{n} prompts" for n in PROMPTS) + " |")
    print("| :--- |" + " ---: |" * len(PROMPTS))
    for name, (most, correlation) in KINDS.items():
        cells = []
        for n in PROMPTS:
            found = [coverage(n, most, correlation, truth, options.draws) for truth in TRUTHS]
            cells.append(f"{min(found):.1%} to {max(found):.1%}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
