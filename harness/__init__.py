"""The harness: decide how to align a language model, on evidence. ``harness.cli.api`` documents the public names."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.cli.api import UserError, judge, predict, run, runs, write_report

__version__ = "0.1.0"
__all__ = ["UserError", "judge", "predict", "run", "runs", "write_report"]


def __getattr__(name: str) -> Any:
    """The public names, imported when they are asked for: ``import harness`` costs nothing."""
    if name not in __all__:
        raise AttributeError(f"module 'harness' has no attribute {name!r}")
    # By a computed name: keys hold the modules that imports reach, and every module's reach its package's.
    return getattr(importlib.import_module(f"{__name__}.cli.api"), name)
