"""The policy at the best point of its curve: on disk while training goes on, and put back when it ends."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path("best")
"""Below a trial's folder, until the policy is saved and judged."""


def best_of(points: Sequence[Mapping[str, Any]], metric: str) -> Mapping[str, Any] | None:
    """The point with the highest value of ``metric``, of equals the first; None where none has it.

    The base, at share 0, is no candidate: what is kept has been trained.
    """
    scored = [p for p in points if p["share"] > 0 and metric in p["values"]]
    return max(scored, key=lambda p: p["values"][metric], default=None)


class Snapshots:
    """Trained weights by the share of the budget at which they were; each file is whole or not there.

    A new one is written before the old one goes, and the point is journalled between: a process that is killed at any
    moment leaves the file of the best point on record.

    Args:
        folder: the trial's.
        policy: the model as its trainer holds it. What it trains now is what is kept; roles that share its base add
            parameters, and are switched off while nothing is trained.
    """

    def __init__(self, folder: Path, policy: Any):
        """Nothing is kept yet."""
        self.folder = folder / FOLDER
        self._weights = {name: p for name, p in policy.named_parameters() if p.requires_grad}

    def write(self, share: float) -> None:
        """Keep the weights as they are now."""
        from safetensors.torch import save_file

        self.folder.mkdir(parents=True, exist_ok=True)
        draft = self.folder / ".draft"
        save_file({name: p.detach().contiguous() for name, p in self._weights.items()}, draft)
        os.replace(draft, self._file(share))

    def drop_but(self, share: float) -> None:
        """Remove all but one."""
        for file in self.folder.glob("*.safetensors"):
            if file != self._file(share):
                file.unlink()

    def put_back(self, share: float) -> None:
        """Give the policy the weights that it had.

        Raises:
            RuntimeError: they are not there.
        """
        import torch
        from safetensors.torch import load_file

        if not self._file(share).is_file():
            raise RuntimeError(
                f"the policy at {share:g} of the budget is gone from {self.folder}; train with resume=false"
            )
        kept = load_file(self._file(share))
        with torch.no_grad():
            for name, parameter in self._weights.items():
                parameter.copy_(kept[name])

    def _file(self, share: float) -> Path:
        return self.folder / f"{share!r}.safetensors"


def forget(folder: Path) -> None:
    """Remove all that is kept of a trial's points."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
