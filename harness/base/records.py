"""Frozen records shared by everyone. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

SCHEMA_VERSION = 1

PHASES = ("prepare", "reference", "baseline", "train", "rollout", "evaluate")
"""Every second and every memory sample of a trial belongs to exactly one of these."""


class Outcome(StrEnum):
    """How a trial ended; the first two are successes."""

    FINISHED = "finished"
    REUSED = "reused"
    FAILED = "failed"
    OOM = "oom"
    TIMEOUT = "timeout"
    INTERRUPTED = "interrupted"
    DIVERGED = "diverged"
    STOPPED = "stopped"
    UNFIT = "unfit"

    @property
    def succeeded(self) -> bool:
        """Whether the trial has its numbers."""
        return self in (Outcome.FINISHED, Outcome.REUSED)


@dataclass(frozen=True)
class Event:
    """One line of a journal.

    Attributes:
        time: seconds since the epoch, taken where the event happened.
        kind: what happened (``docs/architecture.md`` lists the kinds).
        data: the rest of the line.
    """

    time: float
    kind: str
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class MemorySample:
    """Memory of a trial at one instant.

    Attributes:
        time: seconds since the epoch.
        used_mb: memory of the trial through the lens in use, in MB (10^6 bytes).
        lens: ``nvml_process``, ``nvml_device_delta``, ``private`` (private resident bytes of the process tree).
        utilisation_percent: GPU utilisation, where there is one.
        power_w: GPU power draw, where it can be read.
    """

    time: float
    used_mb: float
    lens: str
    utilisation_percent: float | None = None
    power_w: float | None = None


@dataclass(frozen=True)
class Trial:
    """One point of a sweep, before it runs.

    Attributes:
        trial_id: readable, unique and deterministic within a sweep; names the folder.
        sweep: name of the sweep.
        config: effective configuration, nested, knobs that this trial does not use left out.
        train_key: digest of everything that can change what training yields.
        eval_key: digest of the evaluators' configuration, code and data.
        digests: ``dataset``, ``base`` (the recipe's) and ``code``.
        why: per key what it was computed from, so that a change can be named.
    """

    trial_id: str
    sweep: str
    config: Mapping[str, Any]
    train_key: str
    eval_key: str
    digests: Mapping[str, str] = field(default_factory=dict)
    why: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TrialResult:
    """What ``result.json`` holds.

    Attributes:
        digests: the trial's own, and ``behaviour.<name>`` of what it was judged by.
        fingerprints: the figures behind those.
        train_key: under which it was made; None in a file of an older version.
        eval_key: likewise.
        attempt: when the attempt began that it is of, in seconds since the epoch.
    """

    trial_id: str
    outcome: Outcome
    reason: str | None
    config: Mapping[str, Any]
    metrics: Mapping[str, float]
    digests: Mapping[str, str]
    environment: Mapping[str, Any]
    fingerprints: Mapping[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION
    train_key: str | None = None
    eval_key: str | None = None
    attempt: float | None = None


UNLESS_DEFAULT = {"told": "unless default"}
"""Metadata of a field that is part of a trial's configuration only where it is set to something else.

For knobs that few trials turn, or that came after trials were named and baselines recorded without them.
"""


UNTOLD = {"told": False}
"""Metadata of a field that changes no figure, or is told elsewhere: it is no part of a configuration."""


def unless_default(default: Any) -> Any:
    """A dataclass field with ``UNLESS_DEFAULT``."""
    return field(default=default, metadata=UNLESS_DEFAULT)
