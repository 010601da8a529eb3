"""Memory of a trial of several processes, each by itself: a sampler for each of them, beside that of the whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from harness.base.records import Event
from harness.base.world import World
from harness.store.journal import Tail
from harness.store.memory_metrics import OfRank
from harness.telemetry.sampler import MemorySampler
from harness.trial.job import Job


@dataclass
class _Rank:
    tail: Tail
    events: list[Event] = field(default_factory=list)
    sampler: MemorySampler | None = None


class RankSamplers:
    """Follows the journals of a trial's processes, and samples each from when it says who it is.

    Args:
        job: the trial's.
        emit: takes a sampler's row with ``rank``.
        began: when the trial's processes were started; what their journals hold from before is another attempt's.
        options: of the samplers (``env``, ``hz``, ``levels``).
    """

    def __init__(self, job: Job, emit: Callable[[dict[str, Any]], object], began: float, **options: Any):
        """Nothing is read yet; entering starts."""
        size = job.world.size if job.world.size > 1 else 0
        paths = {k: Path(job.folder) / replace(job, world=World(k, size)).journal for k in range(size)}
        self._ranks = {k: _Rank(Tail(path)) for k, path in paths.items()}
        self._emit, self._began, self._options = emit, began, options
        self._stack = ExitStack()
        self.uuids: set[str] = set()

    def look(self) -> None:
        """Read what the processes have written since."""
        for number, rank in self._ranks.items():
            for event in rank.tail.read():
                if event.time >= self._began:
                    rank.events.append(event)
                    self._heed(number, rank, event)

    def _heed(self, number: int, rank: _Rank, event: Event) -> None:
        if event.kind == "rank" and rank.sampler is None:
            sampler = MemorySampler(
                int(event.data["pid"]), emit=lambda row: self._emit({**row, "rank": number}), **self._options
            )
            rank.sampler = self._stack.enter_context(sampler)
        elif event.kind == "phase" and rank.sampler is not None:
            rank.sampler.enter(event.data["name"], event.time)
        elif event.kind == "device" and event.data.get("uuid") and rank.sampler is not None:
            self.uuids.add(event.data["uuid"])
            rank.sampler.use_gpu(event.data["uuid"])

    def seen(self) -> Mapping[int, OfRank]:
        """What each of them took; complete after exit."""
        return {
            number: OfRank(rank.events, None if rank.sampler is None else rank.sampler.summary())
            for number, rank in self._ranks.items()
        }

    def __enter__(self) -> Self:
        """Start with the first process that is there."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Take the last samples."""
        self.look()
        self._stack.close()
