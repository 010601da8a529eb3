"""A sweep before it runs: its cross product expanded, every trial built and checked, duplicates found."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.base.errors import UserError, UserErrors
from harness.base.records import Trial
from harness.config.building import build
from harness.config.compose import as_user_error, compose, hydra_config
from harness.config.listed import LISTED, listed
from harness.config.theirs import as_theirs
from harness.runner.run_trial import Runner
from harness.store.mlflow_store import SweepRun, Tracking
from harness.store.result import write_json
from harness.trial.assemble import Setup, assemble
from harness.trial.checks import check_data
from harness.trial.identify import identify

BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


@dataclass(frozen=True)
class Point:
    """One combination of the cross product that can run."""

    overrides: tuple[str, ...]
    setup: Setup
    trial: Trial


@dataclass(frozen=True)
class Sweep:
    """All that is known before the first trial.

    Attributes:
        points: distinct trials, in launch order.
        duplicates: (overrides, trial id of the twin) of combinations that are the same trial.
        invalid: (overrides, errors) of combinations that cannot run.
        expanded: whether the cross product was known; other sweepers choose as they go.
        plugins: the classes of Hydra's sweeper and launcher.
    """

    name: str
    plain: Mapping[str, Any]
    points: tuple[Point, ...]
    duplicates: tuple[tuple[tuple[str, ...], str], ...]
    invalid: tuple[tuple[tuple[str, ...], UserErrors], ...]
    runner: Runner
    tracking: Tracking
    expanded: bool
    plugins: tuple[str, str] = (BASIC_SWEEPER, BASIC_LAUNCHER)

    @property
    def own_process(self) -> bool:
        """Whether trials start from this process, by Hydra's basic launcher."""
        return self.plugins[1] == BASIC_LAUNCHER

    @property
    def folder(self) -> Path:
        """``outputs/<sweep>``."""
        return Path(str(self.plain.get("outputs", "outputs"))) / self.name


def named(overrides: Sequence[str]) -> list[str]:
    """The overrides, with a time stamp as the sweep's name where they give none: all jobs must agree on it."""
    if any(o.lstrip("+").startswith("sweep=") for o in overrides):
        return list(overrides)
    return [*overrides, f"sweep={time.strftime('%Y-%m-%d_%H-%M-%S')}"]


def plan_sweep(overrides: Sequence[str], *, multirun: bool, config_dirs: Sequence[str] = ()) -> Sweep:
    """Expand, compose and build every trial; raises ``UserErrors`` with everything wrong with the sweep.

    With ``runner.skip_invalid=true`` combinations that cannot run are listed instead, unless none can.
    """
    with hydra_config(config_dirs):
        combinations, base, sweeper, launcher = _expand(overrides, multirun)
        composed: list[tuple[tuple[str, ...], dict[str, Any] | UserErrors]] = []
        for combination in combinations:
            try:
                composed.append((tuple(combination), compose(combination)))
            except Exception as error:  # Hydra's and OmegaConf's own kinds; anything else is re-raised
                composed.append((tuple(combination), UserErrors([as_user_error(error)])))
    plain = base if base is not None else next((c for _, c in composed if isinstance(c, dict)), None)
    if plain is None:
        raise UserErrors([e for _, c in composed if isinstance(c, UserErrors) for e in c.errors])
    runner, tracking, wrong = _services(plain)

    points: list[Point] = []
    duplicates: list[tuple[tuple[str, ...], str]] = []
    invalid: list[tuple[tuple[str, ...], UserErrors]] = []
    seen: set[str] = set()
    for combination, config in composed:
        try:
            if isinstance(config, UserErrors):
                raise config
            setup = assemble(config)
            trial = identify(setup, check_data(setup))
        except UserErrors as errors:
            invalid.append((combination, errors))
            continue
        except Exception as error:  # ours, or whatever a class of the user's own raises; any other is raised again
            invalid.append((combination, UserErrors([as_theirs(error, config)])))  # type: ignore[arg-type]
            continue
        if trial.trial_id in seen:
            duplicates.append((combination, trial.trial_id))
        else:
            seen.add(trial.trial_id)
            points.append(Point(combination, setup, trial))
    if runner.stop_losing and (blind := [p for p in points if p.setup.algo.trains and not p.setup.eval.at]):
        rule = f"stops a trial by its curve, and {blind[0].trial.trial_id} has none"
        wrong.append(UserError(rule, key="runner.stop_losing", value=True, fix="eval.at=[0.25,0.5]"))
    names = {str(c["sweep"]) for _, c in composed if isinstance(c, dict)}
    if len(names) > 1:
        rule = "a sweep has one name"
        wrong.append(UserError(rule, key="sweep", value=",".join(sorted(names)), fix="start one sweep per name"))
    sweep = Sweep(
        name=str(plain["sweep"]),
        plain=plain,
        points=tuple(points),
        duplicates=tuple(duplicates),
        invalid=tuple(invalid),
        runner=runner,
        tracking=tracking,
        expanded=sweeper in (BASIC_SWEEPER, LISTED),
        plugins=(str(sweeper), str(launcher)),
    )
    if wrong:
        raise UserErrors([*wrong, *(e for _, found in invalid for e in found.errors)])
    if invalid and not (runner.skip_invalid and points):
        raise UserErrors([e for _, errors in invalid for e in errors.errors])
    return sweep


def _services(plain: Mapping[str, Any]) -> tuple[Runner, Tracking, list[UserError]]:
    """Runner and tracking, with what is wrong about them (then defaults stand in)."""
    errors: list[UserError] = []
    runner, tracking = Runner(), Tracking()
    try:
        runner = build(plain["runner"], path="runner", base=Runner)
    except UserErrors as found:
        errors += found.errors
    try:
        tracking = build(plain["tracking"], path="tracking", base=Tracking)
    except UserErrors as found:
        errors += found.errors
    return runner, tracking, errors


def write_manifest(sweep: Sweep, run: SweepRun | None, expected: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """``sweep.json``: what jobs need, whichever process launches them; ``expected`` is the memory of each trial."""
    write_json(
        sweep.folder / "sweep.json",
        {
            "sweep": sweep.name,
            "trials": [p.trial.trial_id for p in sweep.points],
            "planned": sweep.expanded,  # no other trials belong to it
            "invalid": [{"overrides": list(o), "errors": str(e)} for o, e in sweep.invalid],
            "tracking": None if run is None else vars(run),
            "expected": dict(expected or {}),
        },
    )


def arms_of(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> list[list[str]]:
    """The combinations of a cross product, as overrides, without building anything."""
    with hydra_config(config_dirs):
        return _expand(overrides, True)[0]


def _expand(
    overrides: Sequence[str], multirun: bool
) -> tuple[list[list[str]], dict[str, Any] | None, str | None, str | None]:
    """Combinations, base configuration where one composes, and the classes of sweeper and launcher."""
    if not multirun:
        return [list(overrides)], None, BASIC_SWEEPER, BASIC_LAUNCHER
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create(GlobalHydra.instance().config_loader())  # glob(*) looks the options up
    try:
        parsed = parser.parse_overrides(list(overrides))
    except Exception as error:
        raise as_user_error(error) from None
    fixed = [o.input_line for o in parsed if not o.is_sweep_override() and o.input_line]
    probe = compose(fixed, with_hydra=True)
    sweeper, launcher = probe["hydra"]["sweeper"], probe["hydra"]["launcher"]
    probe.pop("hydra")
    if sweeper["_target_"] == LISTED:
        if swept := [o.input_line for o in parsed if o.is_sweep_override() and o.input_line]:
            rule = "makes a choice, and hydra/sweeper=listed takes the points of a file as they are"
            raise UserError(rule, key=swept[0], fix="write the choices into the file, a line each")
        return listed(str(sweeper["file"]), fixed), probe, sweeper["_target_"], launcher["_target_"]
    if sweeper["_target_"] != BASIC_SWEEPER:
        return [fixed], probe, sweeper["_target_"], launcher["_target_"]
    from_config = [f"{k}={v}" for k, v in (sweeper.get("params") or {}).items()]
    arguments = parser.parse_overrides([*from_config, *overrides])
    batches = BasicSweeper.split_arguments(arguments, None)
    combinations = [list(job) for batch in batches for job in batch]
    return combinations, probe, sweeper["_target_"], launcher["_target_"]
