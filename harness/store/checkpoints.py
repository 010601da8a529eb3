"""Checkpoints of a training: one counts once everything is in it, and the one before goes only then.

transformers writes ``trainer_state.json`` and deletes older checkpoints while what the harness adds (budget, samples
drawn, PPO's critic) is still to come. A kill in between left a folder that looked like a checkpoint, and from which
no attempt could go on.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

PREFIX = "checkpoint-"  # as transformers names the folders
SEAL = "complete"


def of_step(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is, among those in ``folder``."""
    return folder / f"{PREFIX}{step}"


def seal(checkpoint: Path) -> None:
    """Nothing more comes into ``checkpoint``: let it count, on the disk, and delete the others beside it."""
    for path in (*checkpoint.rglob("*"), checkpoint, checkpoint.parent):
        _to_disk(path)
    (checkpoint / SEAL).touch()
    _to_disk(checkpoint)
    keep_alone(checkpoint)


def keep_alone(checkpoint: Path) -> None:
    """Delete whatever other checkpoints are beside this one, whole or not."""
    _delete([other for other in checkpoint.parent.glob(f"{PREFIX}*") if other != checkpoint])


def clear(folder: Path) -> None:
    """Delete all checkpoints in ``folder``."""
    _delete([*folder.glob(f"{PREFIX}*")])


def _delete(found: Sequence[Path]) -> None:
    for checkpoint in found:  # first: what is deleted by halves is no checkpoint
        (checkpoint / SEAL).unlink(missing_ok=True)
    for checkpoint in found:
        shutil.rmtree(checkpoint, ignore_errors=True)


def newest(folder: Path) -> Path | None:
    """The last checkpoint in ``folder`` that is whole; None where there is none."""
    found = [path.parent for path in folder.glob(f"{PREFIX}*/{SEAL}")]
    return max(found, key=lambda path: int(path.name.removeprefix(PREFIX)), default=None)


def _to_disk(path: Path) -> None:
    """As far as the machine's memory is not all that holds it; folders where the file system can."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)
