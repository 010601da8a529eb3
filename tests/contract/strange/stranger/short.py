"""A reward."""

from dataclasses import dataclass

from harness.rewards.base import Reward


@dataclass(frozen=True)
class Short(Reward):
    """Pays for brevity."""

    def __call__(self, rows, completions):
        """The shorter the better."""
        return [-float(len(text)) for text in completions]
