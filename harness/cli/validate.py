"""``harness validate``: is every YAML sound, and does what a user wrote keep its contract? No torch here."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from harness.base.errors import Mismatch, UserError, UserErrors
from harness.base.streams import silence
from harness.cli.own_files import sound_part
from harness.config.compose import compose, conf_dir, hydra_config
from harness.config.theirs import as_theirs, plugin_problems

COMBINED = ("reward", "task")
"""Keys of errors that say of a combination, and not of a YAML, that it is impossible."""
RULES = ("rules", "policy")
"""What a gate goes by: no part of a trial. The second is what the group was called."""
SERVICES = ("runner", "tracking", "cache")
"""Groups that are no part of a trial's own story."""
BESIDE = {"task": {"model", "adapter", "train"}, "model": {"model", "train"}}
"""Of a group, the keys of errors that other surroundings may not have."""
JUDGE = "eval.evaluators.judged.judge"
"""Where a judge stands: it is part of an evaluator."""
RULES_OF_DATA = "task.curate"
"""Where rules of curation stand: they are part of a task."""
GIVEN = {"both_bad": "bar=1", "cap": "rows=10", "too_easy": "above=1"}
"""What rules of ours cannot do without, and which no default can be."""
OWN_TASKS = 3
"""Of the folder's tasks, on which its rewards and evaluators are tried where the embedded one lacks a column."""
REHEARSED = ("algo", "adapter", "model", "reward", "task")
"""Groups of which a step is tried, on tensors without data."""


def main(argv: list[str]) -> int:
    """Compose and build the given overrides, or every YAML (of --config-dir, if given); train nothing.

    Those of --config-dir are tried as well: a task's rows are read, a step of training is made on tensors without data,
    an evaluator looks at toy models. plugins=[my_package] goes with them.
    """
    parser = argparse.ArgumentParser(prog="harness validate", description=main.__doc__)
    parser.add_argument("-m", "--multirun", action="store_true", help="the overrides are a sweep")
    parser.add_argument("--config-dir", help="a folder with YAML of your own")
    parser.add_argument("overrides", nargs="*", help="a trial or a sweep; plugins=[...] alone goes with every YAML")
    options = parser.parse_intermixed_args(argv)
    folders = [options.config_dir] if options.config_dir else []
    if not all(o.startswith("plugins=") for o in options.overrides):
        from harness.sweep.expand import named, plan_sweep

        sweep = plan_sweep(named(options.overrides), multirun=options.multirun, config_dirs=folders)
        for point in sweep.points:
            print(f"ok  {point.trial.trial_id}")
        for overrides, errors in sweep.invalid:
            print(f"invalid (skipped)  {' '.join(overrides)}: {errors}")
        return 0
    return validate_all(folders, options.overrides)


def validate_all(folders: Sequence[str], plugins: Sequence[str] = ()) -> int:
    """Every option of the folders, composed, built and tried; without folders the harness's own, built alone."""
    for o in plugins:
        value = o.partition("=")[2]
        if missing := plugin_problems(yaml.safe_load(value) if value.startswith("[") else value):
            raise UserErrors(missing)
    if not folders:
        return _all_of([conf_dir()], [], plugins)
    folder = Path(folders[0])
    if not folder.is_dir():
        with hydra_config(folders):  # which says so
            pass
    with sound_part(folder) as (part, unread):
        for name, error in unread:
            _told(name, [error])
        return _all_of([part], [str(part)], plugins, len(unread), shown=folder)


def _all_of(
    roots: Sequence[Path],
    folders: Sequence[str],
    plugins: Sequence[str],
    wrong: int = 0,
    shown: Path | None = None,
) -> int:
    """Look at every option of ``roots``; ``wrong`` files could not be read, and ``shown`` is what the user calls it."""
    ours, where = not folders, (str(roots[0]), str(shown or roots[0]))
    found = [(root, group, option) for root in roots for group, option in options_of(root)]
    if not found and not wrong:
        fix = "put YAMLs into folders by group: FOLDER/reward/mine.yaml"
        raise UserError("nothing to validate there", key="--config-dir", value=str(roots[0]), fix=fix)
    for place, (root, group, option) in enumerate(found, 1):
        if folders:  # some of them take half a minute
            print(f"trying {group}={option} ({place} of {len(found)})", file=sys.stderr, flush=True)
        try:
            print(f"ok  {group}={option}{_looked_at(group, option, root, folders, plugins)}", flush=True)
        except UserErrors as errors:
            # A combination may be impossible (an online algorithm on data without a reward): the YAML is sound.
            serious = [e for e in errors.errors if folders or e.key not in COMBINED]
            wrong += _told(f"{group}={option}", serious, ours, where)
        except UserError as error:
            wrong += _told(f"{group}={option}", [error], ours, where)
        except Exception as error:  # of the user's own class; the options after it are looked at all the same
            if not folders:
                raise
            node = {group: {"_target_": _class_of(root, group, option)}}
            wrong += _told(f"{group}={option}", [as_theirs(error, node)], ours, where)
    print(f"{wrong} wrong" if wrong else "all sound")
    return 2 if wrong else 0


def _class_of(root: Path, group: str, option: str) -> str:
    """The class that a YAML names; its place where it names none."""
    content = yaml.safe_load((root / group / f"{option}.yaml").read_text(encoding="utf-8"))
    named = content.get("_target_") if isinstance(content, dict) else None
    return str(named or f"{group}/{option}.yaml")


def _told(option: str, errors: Sequence[UserError], ours: bool = False, place: tuple[str, str] = ("", "")) -> bool:
    """Print what is wrong with an option; whether anything is. An extra that is not installed is no fault of ours.

    ``place`` is where the files are, and what the user calls it.
    """
    if ours and errors and all((e.fix or "").startswith("pip install ") for e in errors):
        print(f"not looked at: {option} needs {errors[0].fix}", flush=True)
        return False
    words = "".join(f"\n    {e}" for e in errors)
    print(f"{'WRONG' if errors else 'ok '} {option}{words.replace(*place) if place[0] else words}", flush=True)
    return bool(errors)


def _looked_at(group: str, option: str, root: Path, folders: Sequence[str], plugins: Sequence[str]) -> str:
    """Build an option, and try a user's own in the first surroundings that it goes with; returns what was done.

    Raises:
        UserError: it is wrong in all of them; what is said is of the first.
    """
    failed: list[Exception] = []
    for beside in _surroundings(group, folders, plugins):
        if failed:
            if not _foreign(failed[-1], group):
                break
            print(f"  once more, with {' '.join(beside)}", file=sys.stderr, flush=True)
        try:
            _built(group, option, root, folders, [*plugins, *beside])
            tried = _tried(group, option, root, folders, [*plugins, *beside]) if folders else ""
            return tried + (f"  (with {' '.join(beside)})" if beside else "")
        except Exception as error:  # in later surroundings also of what stands there: a model that is wrong itself
            if not failed and not isinstance(error, UserError):
                raise
            failed.append(error)
    told = [error for error in failed if isinstance(error, UserError)]
    if group == "task" and all(_foreign(error, group) for error in failed):
        return (
            f"  (its rows are read; no step tried, since no model here can read them: {str(told[-1]).splitlines()[0]})"
        )
    raise next((error for error in told if not _foreign(error, group)), told[min(1, len(told) - 1)])


def _foreign(error: Exception, group: str) -> bool:
    """Whether an error is about what stands beside an option of ``group``, so that other surroundings may do."""
    errors = error.errors if isinstance(error, UserErrors) else [error]
    if any(isinstance(e, Mismatch) for e in errors):
        return True
    if group in ("reward", "evaluator") and any(" raised " in str(e) or " failed " in str(e) for e in errors):
        return True  # at a row of the embedded task, which may lack what the user's own has
    keys = {(e.key or "").partition(".")[0] for e in errors if isinstance(e, UserError)}
    return not keys or bool(keys & BESIDE.get(group, {"model", "task", "eval", "adapter"} - {group}))


def _loads(chosen: Sequence[str], folders: Sequence[str], plugins: Sequence[str]) -> bool:
    """Whether a task of the folder, with a model that goes with it, has rows that others can be tried on."""
    from harness.trial.assemble import assemble
    from harness.trial.checks import check_data

    try:
        with hydra_config(folders):
            check_data(assemble(compose([*plugins, *chosen])))
    except Exception:  # what is wrong with it is said where it is looked at
        return False
    return True


def _surroundings(group: str, folders: Sequence[str], plugins: Sequence[str]) -> list[list[str]]:
    """What an option may need beside it: the embedded model makes no base of every task and is not in every recipe."""
    if not folders or group in RULES:
        return [[]]
    if group == "model":
        return [[], ["train.max_length=64", "train.max_completion_length=16"]]  # a context may be short
    own = {g: [o for f in folders for kind, o in options_of(Path(f)) if kind == g] for g in ("model", "task")}
    lengths = ["train.max_length=64", "train.max_completion_length=16"]
    models = [["model=shape/llama-10m"], *([f"model={option}", *lengths] for option in own["model"])]
    if group not in ("reward", "evaluator", "curate"):
        return [[], *models]
    tasks = [[[f"task={option}", *model] for model in ([], *models)] for option in own["task"]]
    sound = [[chosen for chosen in ways if _loads(chosen, folders, plugins)] for ways in tasks]
    return [[], *itertools.chain(*[ways for ways in sound if ways][:OWN_TASKS])]


def _built(group: str, option: str, root: Path, folders: Sequence[str], plugins: Sequence[str]) -> None:
    from harness.gate.rules import read_rules
    from harness.trial.assemble import assemble

    if group in RULES:
        read_rules(str(root / group / f"{option}.yaml"))
        return
    needed = [f"{_place(key, option)}={value}" for key, value in _needed(root, group, option).items()]
    if folders and group in SERVICES:
        from harness.sweep.expand import named, plan_sweep

        plan_sweep(named([*plugins, f"{group}={option}"]), multirun=False, config_dirs=folders)
        return
    with hydra_config(folders):
        assemble(compose([*plugins, *_chosen(group, option), *needed]))


def _place(key: str, option: str) -> str:
    """Where a group's key stands in a trial that takes this option."""
    group, _, field = key.partition(".")
    places = {
        "curate": f"{RULES_OF_DATA}.{option}.{field}",
        "evaluator": f"eval.evaluators.{option}.{field}",
        "judge": f"{JUDGE}.{field}",
    }
    return places.get(group, key)


def _chosen(group: str, option: str) -> list[str]:
    """What takes the option into a trial."""
    if group == "evaluator":
        return [] if option in _default_evaluators() else [f"+evaluator@eval.evaluators.{option}={option}"]
    if group == "reward":
        return ["algo=grpo", f"reward={option}"]
    if group == "judge":
        return ["+evaluator@eval.evaluators.judged=judged", f"judge@{JUDGE}={option}"]
    if group == "curate":
        given = [f"{RULES_OF_DATA}.{option}.{GIVEN[option]}"] if option in GIVEN else []
        return [f"+curate@{RULES_OF_DATA}.{option}={option}", *given]
    return [f"{group}={option}"]


def _tried(group: str, option: str, root: Path, folders: Sequence[str], plugins: Sequence[str]) -> str:
    """Try an option of the user's own, as far as that needs no training; returns what was done.

    Raises:
        UserError: it breaks its contract.
    """
    from harness.models.base import Model
    from harness.plan.predict import Prediction, Target, predict
    from harness.sweep import deep_checks
    from harness.sweep.expand import named, plan_sweep

    if group not in (*REHEARSED, "evaluator", "curate"):
        return ""
    if needed := _needed(root, group, option):
        return f"  (not tried: {', '.join(needed)} must be given; validate {group}={option} with it)"
    sweep = plan_sweep(named([*plugins, *_chosen(group, option)]), multirun=False, config_dirs=folders)
    for errors in deep_checks.check(sweep).values():
        raise errors
    (point,) = sweep.points
    if group == "curate":
        return "  (training rows sifted)"
    if group == "evaluator":
        if words := _on_toys(dict(point.setup.plain), option):
            raise UserError(
                f"evaluate() failed on toy models and the first rows of the data: {words}",
                key=f"eval.evaluators.{option}",
                fix="mend it; one that needs a download says in on_fixture() how it is tried without",
            )
        return "  (looked at toy models)"
    if type(point.setup.model).configuration is Model.configuration:
        return "  (no step tried: the model has no configuration())"
    (found,) = predict([point.setup], Target(cuda=False))
    if not isinstance(found, Prediction):
        raise found
    return "  (a step made, on tensors without data)"


def _on_toys(plain: dict[str, Any], name: str) -> str:
    """In a child: what went wrong when the evaluator looked at toy models; empty where nothing did."""
    from harness.runner import forkserver

    try:
        return forkserver.asked(_evaluate, json.dumps(plain), name, name="validate")
    except forkserver.Ended as ended:
        return str(ended)


def _evaluate(sender: Any, text: str, name: str) -> None:
    from harness.trial.assemble import assemble
    from harness.trial.behaviour import context_on_toys, fixture_rows, of_evaluator
    from harness.trial.checks import check_data

    silence(1, 2)  # library chatter; what matters is sent
    try:
        setup = assemble(json.loads(text))
        rows = fixture_rows(check_data(setup), setup.eval.split)
        of_evaluator(setup.eval.active[name], context_on_toys(setup.task, rows, chat=False))
        words = ""
    except Exception as error:  # whatever the user's code raises
        place = traceback.extract_tb(error.__traceback__)[-1]
        words = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}: {error}"
    sender.send(words)
    sender.close()
    os._exit(0)


def options_of(root: Path) -> Iterator[tuple[str, str]]:
    """(group, option) of every YAML below a configuration folder; the top-level file and Hydra's own are left out."""
    for file in sorted(path for path in root.rglob("*.yaml") if path.is_file()):
        group = file.relative_to(root).parent.as_posix()
        if group == "." or group.startswith("hydra/"):
            continue
        head, _, tail = group.partition("/")
        yield head, f"{tail}/{file.stem}" if tail else file.stem


def _default_evaluators() -> set[str]:
    default = (conf_dir() / "eval" / "default.yaml").read_text()
    return {p.stem for p in (conf_dir() / "evaluator").glob("*.yaml") if f": {p.stem}" in default}


def _needed(root: Path, group: str, option: str) -> dict[str, str]:
    """Values that an option cannot do without: required fields, marked ??? in its YAML or in one that it takes in."""
    text = (root / group / f"{option}.yaml").read_text()
    found = re.findall(r"^(\w+): (?:\?\?\?|\$\{.*\?\?\?)", text, flags=re.MULTILINE)
    needed = {f"{group}.{name}": "placeholder" for name in found}
    taken = [
        (other, other, name) for other, name in re.findall(r"^  - override /(\w+): ([\w/]+)", text, flags=re.MULTILINE)
    ]
    parts = re.findall(r"^  - /(\w+)@(\w+): ([\w/]+)", text, flags=re.MULTILINE)
    for other, place, name in [*taken, *((other, f"{group}.{part}", name) for other, part, name in parts)]:
        given = {f"{place}.{key}" for key in yaml.safe_load(text).get(place.rpartition(".")[2]) or ()}
        below = next((r for r in (root, conf_dir()) if (r / other / f"{name}.yaml").is_file()), None)
        theirs = _needed(below, other, name) if below else {}
        placed = {f"{place}.{key.removeprefix(f'{other}.')}": value for key, value in theirs.items()}
        needed |= {key: value for key, value in placed.items() if key not in given}
    return needed
