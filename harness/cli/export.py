"""``python -m harness export``: the policy of a trial, for transformers, peft or vLLM to load."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from harness.base.commandline import Parser
from harness.base.errors import UserError
from harness.runner.display import say
from harness.store.past import trial_folders

EXAMPLES = "RUN: a trial's folder, its id (the sweep's name before it: monday/dpo-lora-...), or an MLflow run id"
SPELLED = {"tracking.uri": "--tracking-uri", "sweep": "--sweep", "outputs": "--outputs"}
"""Hydra's spelling of options."""
CHATTY = ("torchao", "torch.utils._pytree", "bitsandbytes")
"""Loggers of libraries that tell at import what of them this machine has no use for."""
FILES = ("trial.json", "runner.jsonl", "result.json")


def main(argv: list[str]) -> int:
    """Write the folder and print its path.

    Raises:
        UserError: no such trial, nothing that can be exported as asked, or a folder that holds something.
    """
    parser = Parser("export", f"{__doc__} {EXAMPLES}.")
    parser.add_argument("run", metavar="RUN", help="the trial")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--merge", action="store_true", help="a whole model, with the adapter merged into its base")
    kind.add_argument("--adapter", action="store_true", help="the adapter alone, with the name of its base")
    parser.add_argument("--to", metavar="FOLDER", required=True, help="where to; must be new or empty")
    parser.add_argument("--dtype", default="bfloat16", help="of merged weights: bfloat16, float16, float32")
    parser.add_argument("--sweep", metavar="NAME", help="that the trial's id belongs to")
    parser.add_argument("--outputs", metavar="DIR", default="outputs", help="default: %(default)s")
    parser.add_argument("--tracking-uri", metavar="URI", default="sqlite:///mlflow.db", help="default: %(default)s")
    try:
        options = parser.parse_args([_spelled(argument) for argument in argv])
    except SystemExit:  # --help
        return 0

    from harness.trial.exporting import DTYPES, export_adapter, export_merged, kept

    if options.dtype not in DTYPES:
        raise UserError("unknown dtype", key="--dtype", value=options.dtype, fix=f"known: {', '.join(DTYPES)}")
    quiet_libraries()
    policy = kept(trial_of(options.run, Path(options.outputs), options.sweep, options.tracking_uri))
    target = Path(options.to).expanduser().absolute()
    if options.adapter:
        export_adapter(policy, target)
    else:
        export_merged(policy, target, options.dtype, say)
    say("its README.md says what it is and has the lines that load it")
    print(target)
    return 0


def quiet_libraries() -> None:
    """Libraries' bars and warnings would stand between the lines that matter."""
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    from transformers.utils import logging as theirs

    theirs.disable_progress_bar()
    theirs.set_verbosity_error()


def _spelled(argument: str) -> str:
    key, equals, value = argument.partition("=")
    return f"{SPELLED[key]}={value}" if equals and key in SPELLED else argument


def trial_of(run: str, outputs: Path, sweep: str | None, uri: str) -> Path:
    """The folder of a trial.

    Args:
        run: its folder, its id with or without its sweep, or an MLflow run id.
        outputs: the folder that holds the sweeps.
        sweep: the name of the sweep, if that is known.
        uri: of the store that knows run ids.

    Raises:
        UserError: there is none, or there are several.
    """
    if _is_trial(Path(run)):
        return Path(run)
    sweeps = [outputs / sweep] if sweep else [outputs, *sorted(p for p in outputs.glob("*") if p.is_dir())]
    found = [place / run for place in sweeps if _is_trial(place / run)]
    if len(found) > 1:
        names = ", ".join(folder.parent.name for folder in found)
        raise UserError("is in several sweeps", key="RUN", value=run, fix=f"--sweep one of {names}")
    if found:
        return found[0]
    if re.fullmatch("[0-9a-f]{32}", run):
        return _tracked(run, uri)
    raise UserError("no such trial", key="RUN", value=run, fix=_known(run, sweeps))


def _is_trial(folder: Path) -> bool:
    return any((folder / name).is_file() for name in FILES)


def _tracked(run_id: str, uri: str) -> Path:
    """The folder that a run in MLflow names."""
    from harness.store import results

    try:
        row = results.from_runs(uri, [run_id]).iloc[0]
    except UserError as error:
        if error.key != "--runs":
            raise
        raise UserError(error.rule, key="RUN", value=run_id, fix=error.fix) from None
    folder = Path(str(row["folder"]))
    if not _is_trial(folder):
        fix = f"name the folder of {row['trial_id']}, or call this where its sweep was started"
        raise UserError("the files of this run are gone", key="RUN", value=str(folder), fix=fix)
    return folder


def _known(run: str, sweeps: Sequence[Path]) -> str:
    names = [folder.name for sweep in sweeps for folder in trial_folders(sweep)]
    near = difflib.get_close_matches(run, names, n=3, cutoff=0.3)
    return f"did you mean {' or '.join(near)}?" if near else f"{EXAMPLES}; --outputs says where the sweeps are"
