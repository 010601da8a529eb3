"""``python -m harness plan``: predicted peak memory of every trial of a sweep; needs no GPU and loads no weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from harness.base.errors import UserError, UserErrors
from harness.base.formatting import short_id, without_shared_seed
from harness.config.compose import compose, hydra_config
from harness.plan.fixes import fixes
from harness.plan.gpus import Gpu, gpu_of, gpu_present
from harness.plan.predict import Prediction, Target, known, predict
from harness.plan.render import Row, as_json, render
from harness.plan.spread import spread
from harness.runner import forkserver
from harness.runner.display import say
from harness.sweep.deep_checks import TEMPLATE, check
from harness.sweep.expand import Point, Sweep, named, plan_sweep
from harness.trial.assemble import Setup, assemble, with_baseline

AUTO = "the longest of the data; filled to train.max_length where a real model meets the embedded task"
OF_BASE = ("load", "baseline")
"""Phases that the base as deployed sets the peak of."""
QUANTIZED = "the base is judged quantized: whole it would not fit (eval.baseline=auto)"


def main(argv: list[str]) -> int:
    """Print the plan; 0 whether or not trials fit, 2 where none can be predicted."""
    options = _options(argv)
    if options is None:
        return 0
    sweep, rows, gpu, cuda = plan(
        options.overrides,
        options.gpu,
        options.config_dir,
        multirun=options.multirun,
        lengths=options.lengths,
        gpus=options.gpus,
    )
    rule = {"limit": "filled to train.max_length", "data": "the longest of the data", "auto": AUTO}[options.lengths]
    if options.format == "json":
        shown = as_json(rows, gpu, cuda=cuda, rule=rule)
    else:
        shown = render(rows, gpu, cuda=cuda, rule=rule, markdown=options.format == "markdown")
    if options.out:
        Path(options.out).write_text(shown, encoding="utf-8")
    else:
        print(shown, end="")
    for overrides, errors in sweep.invalid:
        say(f"skipped (invalid): {' '.join(overrides)}: {errors}")
    return 0 if any(row.prediction is not None for row in rows) else 2


def plan(
    overrides: Sequence[str],
    gpu: str | None,
    config_dirs: Sequence[str],
    *,
    multirun: bool = True,
    lengths: Literal["auto", "data", "limit"] = "auto",
    gpus: int = 1,
) -> tuple[Sweep, list[Row], Gpu | None, bool]:
    """The sweep, a row for each trial, the GPU to fit into, and whether a GPU was predicted for.

    With several ``gpus``, a trial that one of them cannot hold is tried on 2, 4, 8 … up to so many.

    Raises:
        UserErrors: the sweep, the GPU's name or a chat template is wrong.
    """
    asked = None if gpu is None else gpu_of(gpu)
    if gpus < 1:
        raise UserError("a number of GPUs", key="--gpus", value=gpus, fix="--gpus 8")
    forkserver.warm_up()  # its imports take seconds; the sweep is composed meanwhile
    try:
        sweep = plan_sweep(named(overrides), multirun=multirun, config_dirs=config_dirs)
        device, cuda = _place(asked, sweep)
        if gpus > 1 and device is None:
            raise UserError(
                "of which kind is not known: no GPU is here",
                key="--gpus",
                value=gpus,
                fix=f"--gpu h100 --gpus {gpus}, or --gpu with a size such as 24GB",
            )
        target = Target(cuda, fill={"limit": True, "data": False, "auto": None}[lengths])
        if endless := _template_problems(sweep, target):
            raise UserErrors(endless)
        return sweep, planned(sweep.points, device, target, config_dirs, gpus), device, cuda
    finally:
        forkserver.stop()


def _template_problems(sweep: Sweep, target: Target) -> list[UserError]:
    """Chat templates that a rehearsal, which renders the longest rows, would hang or fail at."""
    rehearsed = replace(sweep, points=[p for p in sweep.points if not known(p.setup, target)])
    return [e for found in check(rehearsed).values() for e in found.errors if e.key == TEMPLATE]


def planned(
    points: Sequence[Point], gpu: Gpu | None, target: Target, config_dirs: Sequence[str] = (), gpus: int = 1
) -> list[Row]:
    """A row for each trial, with what to change about those that do not fit."""
    rows = []
    for point, label, found in zip(points, names(points), predict([p.setup for p in points], target, say), strict=True):
        if not isinstance(found, Prediction):
            rows.append(Row(label, None, str(found)))
        elif gpu is None or gpu.fits(found.peak):
            rows.append(Row(label, found))
        else:
            row = _changed(point, label, found, gpu, target, config_dirs)
            if gpus > 1 and row.prediction is not None and not gpu.fits(row.prediction.peak):
                say(f"{label}: on how many GPUs does it fit?")
                baseline = "quantized" if row.note == QUANTIZED else None
                row = replace(row, shares=spread(_recomposed(point, config_dirs, baseline), gpu, gpus, target, say))
            rows.append(row)
    return rows


def _changed(point: Point, label: str, found: Prediction, gpu: Gpu, target: Target, config_dirs: Sequence[str]) -> Row:
    """The row of a trial that does not fit: with its base judged quantized, and with what else to change."""
    baseline = None if gpu.fits(max(found.totals.get(p, 0.0) for p in OF_BASE)) else "quantized"
    light = _judged_quantized(point.setup, target) if baseline else None
    if light is not None and gpu.fits(light.peak):
        return Row(label, light, note=QUANTIZED)
    again = _recomposed(point, config_dirs, None if light is None else baseline)
    say(f"{label} does not fit: looking for changes that make it")
    ways, nearest = fixes(again([]), light or found, gpu, target, again, say)
    return Row(label, light or found, fixes=ways, nearest=nearest, note="" if light is None else QUANTIZED)


def _judged_quantized(setup: Setup, target: Target) -> Prediction | None:
    """The prediction with the base judged quantized, where ``eval.baseline=auto`` may come to that."""
    chosen = with_baseline(setup, "quantized")
    again = None if chosen is setup or not setup.adapter.quantized else predict([chosen], target, say)[0]
    return again if isinstance(again, Prediction) else None


def names(points: Sequence[Point]) -> list[str]:
    """Trial ids without digest, and without a seed that all share; namesakes with the overrides that differ."""
    short = without_shared_seed([short_id(p.trial.trial_id) for p in points])
    found = []
    for name, point in zip(short, points, strict=True):
        alike = [set(p.overrides) for n, p in zip(short, points, strict=True) if n == name]
        own = [o for o in point.overrides if any(o not in overrides for overrides in alike)]
        found.append(" ".join([name, *own]))
    return found if len(set(found)) == len(found) else [p.trial.trial_id for p in points]


def _recomposed(
    point: Point, config_dirs: Sequence[str], baseline: str | None = None
) -> Callable[[Sequence[str]], Setup]:
    def composed(more: Sequence[str]) -> Setup:
        keys = {override.split("=")[0] for override in more}
        kept = [o for o in point.overrides if o.lstrip("+").split("=")[0] not in keys]
        with hydra_config(config_dirs):
            return with_baseline(assemble(compose([*kept, *more])), baseline)

    return composed


def _place(asked: Gpu | None, sweep: Sweep) -> tuple[Gpu | None, bool]:
    """The GPU to fit into, and whether to predict for one: unless ``runner.device=cpu`` says otherwise."""
    if asked is not None:
        return asked, True
    if sweep.runner.device == "cpu":
        return None, False
    return gpu_present(), True


def _options(argv: list[str]) -> Any | None:
    from harness.base.commandline import Parser

    parser = Parser("plan", __doc__ or "")
    parser.add_argument("-m", "--multirun", action="store_true", help="the overrides are a sweep")
    parser.add_argument(
        "--gpu", metavar="GPU", help="a name (h100) or size (24GB) to fit into; default: the one present"
    )
    parser.add_argument(
        "--gpus", type=int, default=1, metavar="N", help="on how many of them, N at most, does a trial fit?"
    )
    parser.add_argument(
        "--lengths",
        choices=("auto", "data", "limit"),
        default="auto",
        help="rows as long as the longest of the data, or as train.max_length allows; auto takes the limit where a "
        "model that is not the embedded one meets the embedded task; default: %(default)s",
    )
    parser.add_argument("--format", choices=("text", "markdown", "json"), default="text", help="default: %(default)s")
    parser.add_argument("--out", metavar="FILE", help="write there instead of to the terminal")
    parser.add_argument("--config-dir", action="append", default=[], help="a folder with YAML of your own")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for a sweep")
    try:
        return parser.parse_args(argv)
    except SystemExit:  # --help
        return None
