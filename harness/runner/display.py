"""What a person sees while a sweep runs: one live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO


def say(line: str) -> None:
    """A line beside the results: standard error, at once."""
    print(line, file=sys.stderr, flush=True)


def spell(seconds: float) -> str:
    """A time that a person waits: ``45 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Display:
    """Progress of one trial.

    Args:
        label: for example ``[1/2] dpo-lora-b0.1-r16-s0``.
        stream: where to write; a live line if it is a terminal.
        every_s: seconds between two plain lines within a phase.
    """

    def __init__(self, label: str, stream: TextIO | None = None, every_s: float = 15.0):
        """Write nothing yet."""
        self.label, self.every_s = label, every_s
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.started = self._last = time.monotonic()
        self._phase = ""
        self._drawn = 0.0
        self._paced, self._first = "", (0.0, 0.0)

    def update(
        self, phase: str, step: float | None, total: int | None, memory_mb: float | None, what: str = ""
    ) -> None:
        """Show the present state; cheap enough to be called ten times a second."""
        now = time.monotonic()
        text = self._text(phase, step, total, memory_mb, what)
        shown = {"rollout": "train"}.get(phase, phase)
        if self.live:
            if now - self._drawn >= 0.1:
                self._drawn = now
                width = shutil.get_terminal_size().columns
                self.stream.write(f"\r\x1b[2K{text[: width - 1]}")
                self.stream.flush()
        elif shown != self._phase or now - self._last >= self.every_s:
            self._phase, self._last = shown, now
            self.say(text)

    def say(self, text: str) -> None:
        """A line that stays."""
        if self.live:
            self.stream.write("\r\x1b[2K")
        self.stream.write(text + "\n")
        self.stream.flush()

    def finish(self, text: str) -> None:
        """The trial's last line."""
        self.say(f"{self.label} · {text}")

    def _pace(self, of: str, step: float, total: int) -> list[str]:
        """How fast it goes and how long it will go on, by the steps since it began."""
        now = time.monotonic()
        if of != self._paced or step < self._first[0]:
            self._paced, self._first = of, (step, now)
        done, took = step - self._first[0], now - self._first[1]
        if done <= 0 or took < 1:
            return []
        rate = done / took
        left = [f"{spell((total - step) / rate)} left"] if step < total else []
        return [f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each", *left]

    def _text(self, phase: str, step: float | None, total: int | None, memory_mb: float | None, what: str) -> str:
        parts = [self.label, f"{phase}{f' ({what})' if what else ''}"]
        if step is not None and total:
            parts.append(f"step {step:,.4g}/{total:,}" if step % 1 else f"step {int(step):,}/{total:,}")
            parts += self._pace(f"{phase} {what}", step, total)
        if memory_mb is not None:
            parts.append(f"{memory_mb:,.0f} MB")
        parts.append(f"{time.monotonic() - self.started:.0f} s")
        return " · ".join(parts)
