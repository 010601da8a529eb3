"""The command line: sub-commands of our own, and the Hydra application for everything else."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Callable, Sequence

from harness.base import gc_tuning
from harness.base.errors import UserError
from harness.base.streams import occupy_closed, unbreakable

OK, NOT_FINISHED, USER_ERROR = 0, 1, 2
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
"""Errors of a disk that is full, broken, or can only be read."""

COMMANDS: dict[str, tuple[str, str]] = {
    "report": ("harness.cli.report", "markdown report with plots of a sweep, from MLflow alone"),
    "gate": ("harness.cli.gate", "fail where a sweep is worse than a baseline"),
    "ui": ("harness.cli.commands", "start the MLflow UI on the store in use"),
    "plan": ("harness.cli.plan", "predicted peak memory of every trial of a sweep; needs no GPU"),
    "data": ("harness.cli.rows.showing", "what a trial would learn from: rows, tokens, what is odd about them"),
    "label": (
        "harness.cli.rows.label",
        "preference rows of prompts with several replies, by a judge that is asked in both orders",
    ),
    "constitution": (
        "harness.cli.rows.constitution",
        "rows from principles: a model's replies, criticised, revised and judged",
    ),
    "doctor": ("harness.cli.doctor", "what this machine can do, with a fix for each thing that is wrong"),
    "validate": (
        "harness.cli.validate",
        "compose and build every YAML, or the given overrides; tries those of your own folder",
    ),
    "init": ("harness.cli.init", "an experiment, a gate and a CI file for your own model and data"),
    "export": ("harness.cli.export", "the policy of a trial as a folder to load: --adapter, or --merge into its base"),
    "tune": (
        "harness.cli.loops.tune",
        "the same number of trials for each algorithm, then the winners on the test split",
    ),
    "iterate": ("harness.cli.loops.iterate", "rounds=N: train, and begin again with what came of it"),
    "sync": ("harness.cli.commands", "rebuild MLflow from the trial folders"),
    "cache": ("harness.cli.commands", "list the stage cache; --prune-to 5GB deletes the least recently used"),
}
OF_ONE_TRIAL = {"--cfg", "-c", "--info", "-i", "--shell-completion", "-sc"}
INFO_FLAGS = {"--help", "-h", "--hydra-help", "--version", *OF_ONE_TRIAL}

HELP = """\
Decide how to align a language model: sweep over algorithm, adapter, beta and rank.

  python -m harness                               one trial: DPO with LoRA on the embedded model
  python -m harness -m algo=dpo,grpo              a sweep (commas need -m)
  python -m harness -m experiment=NAME            a named study
  python -m harness --cfg job                     print the configuration, run nothing

Groups (each a folder of conf/; `--config-dir DIR` adds your own):
$APP_CONFIG_GROUPS
Knobs: beta, rank, seed, sweep=NAME (name it again to resume), resume=false, outputs=DIR,
  train.steps, train.save=adapter|full|none, runner.timeout_s, runner.skip_invalid=true, tracking.uri=URI

Commands:
{commands}

Exit codes: 0 all well; 1 a trial did not finish, or the gate found a regression; 2 the input is wrong.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    with unbreakable():
        return _run(list(sys.argv[1:] if argv is None else argv))


def _run(arguments: list[str]) -> int:
    try:
        if arguments and arguments[0] in COMMANDS:
            return _command(arguments[0])(arguments[1:])
        if arguments and re.fullmatch(r"[a-zA-Z][\w-]*", arguments[0]):
            raise _no_command(arguments[0])
        if _flags(arguments) & INFO_FLAGS:
            return _hydra_info(arguments)
        from harness.cli.launch import run_sweep

        return run_sweep(arguments)
    except UserError as error:
        _complain(error)
        return USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return NOT_FINISHED
    except OSError as error:
        if error.errno not in DISK:
            raise  # a fault of ours, which its traceback tells
        print(f"error: {error}; what was written by then is kept", file=sys.stderr)
        return NOT_FINISHED


def _no_command(word: str) -> UserError:
    from harness.base.formatting import did_you_mean

    fix = did_you_mean(word, COMMANDS) or f"commands: {', '.join(COMMANDS)}; a setting is key=value"
    return UserError("no such command", key="command", value=word, fix=fix)


def start() -> None:
    """The process of a command line: run it, and end with its exit code."""
    occupy_closed()
    if "" not in sys.path:
        sys.path.insert(0, "")  # the working directory, as ``python -m`` has it: there the user's packages lie
    gc_tuning.seldom()
    code = main()
    gc_tuning.over()
    sys.exit(code)


def _command(name: str) -> Callable[[list[str]], int]:
    import importlib

    module = importlib.import_module(COMMANDS[name][0])
    return getattr(module, name if COMMANDS[name][0] == "harness.cli.commands" else "main")


def _hydra_info(arguments: list[str]) -> int:
    """``--help``, ``--cfg`` and their kin are Hydra's to answer."""
    from harness.config.compose import hydra_application

    if _asks_help(arguments):
        commands = "\n".join(f"  {name:<{max(map(len, COMMANDS)) + 2}}{text}" for name, (_, text) in COMMANDS.items())
        arguments = [*arguments, f"hydra.help.template='{_escaped(HELP.format(commands=commands))}'"]
    asked = sorted(_flags(arguments) & OF_ONE_TRIAL)
    if asked and {"-m", "--multirun"} & _flags(arguments):
        fix = "leave -m out: name one value for each key"
        raise UserError("shows the configuration of one trial, and not of a sweep", key=asked[0], value="-m", fix=fix)
    try:
        hydra_application(lambda _: None, arguments)
    except SystemExit as ended:
        return OK if ended.code in (None, 0) else USER_ERROR
    return OK


def _asks_help(arguments: Sequence[str]) -> bool:
    return bool({"--help", "-h"} & set(arguments))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "\\'")


def _flags(arguments: Sequence[str]) -> set[str]:
    return {a.split("=")[0] for a in arguments if a.startswith("-")}


def _complain(error: UserError) -> None:
    errors = getattr(error, "errors", [error])
    for one in errors:
        print(f"error: {one}", file=sys.stderr)
    if len(errors) > 1:
        print(f"{len(errors)} errors; nothing was run", file=sys.stderr)
