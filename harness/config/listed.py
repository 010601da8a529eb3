"""A Hydra sweeper that runs the points of a list, where they are no cross product: one trial per line of a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf

from harness.base.errors import UserError
from harness.config.plugins import PACKAGE

LISTED = f"{PACKAGE}.Listed"
KEY = "hydra.sweeper.file"


class Listed(Sweeper):
    """Launches a job per line of ``file``: a JSON list of overrides, which come after those of the command line."""

    def __init__(self, file: str):
        """Nothing is read yet."""
        self.file = file

    def setup(self, *, hydra_context: Any, task_function: Any, config: DictConfig) -> None:
        """Hydra's, before ``sweep``."""
        self._folder = Path(config.hydra.sweep.dir)
        self._composed = config
        self._launcher: Any = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """All points in one batch of the launcher."""
        self._folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self._composed, self._folder / "multirun.yaml")
        done = self._launcher.launch(listed(self.file, arguments), initial_job_idx=0)
        for job in done:
            _ = job.return_value  # raises what the job raised
        return [done]


def listed(file: str, arguments: Sequence[str]) -> list[list[str]]:
    """The overrides of every point.

    Raises:
        UserError: there is no such file, or a line of it is no list of overrides.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        rule = f"cannot be read ({error.strerror})"
        raise UserError(rule, key=KEY, value=file, fix='a file of lines such as ["algo=dpo", "beta=0.1"]') from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            own = json.loads(line)
        except json.JSONDecodeError:
            own = None
        if not isinstance(own, list) or not all(isinstance(word, str) and "=" in word for word in own):
            rule, fix = "must be a JSON list of overrides", 'such as ["algo=dpo", "beta=0.1"]'
            raise UserError(f"line {number} {rule}", key=KEY, value=line[:80], fix=fix)
        found.append([*arguments, *own])
    if not found:
        raise UserError("holds no point", key=KEY, value=file, fix='a line such as ["algo=dpo", "beta=0.1"]')
    return found
