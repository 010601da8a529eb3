r"""``python -m harness iterate``: train, and begin again with what came of it (sample → judge → train).

    python -m harness iterate rounds=3 algo=dpo task=constitution task.prompts=prompts.txt \
        task.principles=principles.txt model=hf model.path=./my-model sweep=mine

Each round is one trial, the sweep `mine-round-1` and so on. The next one's model is the policy of the last, merged into
whole weights below outputs/mine-rounds. Of a task that asks the model itself (task=constitution, judge=policy) the rows
are that policy's own, and all rounds hold out the same prompts. iterate.dtype=bfloat16 stores merged weights in half
the space, and rounds small changes away. Given again, the same command goes on where it was.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from annotated_types import Ge

from harness.base import formatting
from harness.base.errors import UserError
from harness.base.formatting import count
from harness.base.records import Outcome
from harness.config.compose import build
from harness.runner.display import say

if TYPE_CHECKING:
    from harness.base.records import TrialResult

ROUND, POLICIES = "-round-", "-rounds"
FIRST_OWN = ("path", "revision", "trust_remote_code")
"""Fields of a model that say which one it is: from the second round on it is the last one's policy."""
SHOWN = ("eval/true_reward", "eval/preference_accuracy", "eval/win_rate", "eval/win_rate_length_controlled",
         "eval/kl_per_sequence")  # fmt: skip


@dataclass(frozen=True)
class Rounds:
    """``rounds`` and ``iterate.*`` of the command line.

    Attributes:
        rounds: trials, one after the other.
        dtype: of the merged weights that the next round begins with.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    rounds: Annotated[int, Ge(1)]
    dtype: Literal["bfloat16", "float16", "float32"] = "float32"


def main(argv: list[str]) -> int:
    """Run the rounds and print their table; 0 where every one finished.

    Raises:
        UserError: the rounds, or the trial, cannot be run as asked.
    """
    from harness.cli.launch import parse
    from harness.sweep.expand import named

    options = parse(argv)
    if options.help:
        print(__doc__)
        return 0
    overrides = named(options.overrides)
    flags = ["--config-dir", options.config_dir] if options.config_dir else []
    try:
        return _iterate(overrides, flags)
    except KeyboardInterrupt:
        print(f"resume:  {shlex.join(['python', '-m', 'harness', 'iterate', *flags, *overrides])}")
        raise


def _iterate(overrides: Sequence[str], flags: Sequence[str]) -> int:
    from harness.cli.launch import swept
    from harness.store.past import result_of

    rounds, words, name = _asked(overrides)
    _one_trial(words, name, flags[1:])
    found: list[tuple[TrialResult, int]] = []
    start: list[str] = []
    policy = Path()
    for number in range(1, rounds.rounds + 1):
        say(f"round {number} of {rounds.rounds}")
        trial = [*(words if number == 1 else _without_model(words)), *start, f"sweep={name}{ROUND}{number}"]
        code, sweep = swept([*flags, *trial])
        folder = sweep.folder / sweep.points[0].trial.trial_id
        result = result_of(folder)
        if code or result is None or result.outcome is not Outcome.FINISHED:
            how = "did not begin" if result is None else f"ended as {result.outcome.value}"
            print(f"round {number} {how}, so there is no next one")
            return 1
        found.append((result, number))
        policy = _merged(folder, sweep.folder.with_name(f"{name}{POLICIES}") / str(number), rounds.dtype)
        start = ["model=hf", f"model.path='{policy}'"]
    print(_table(found))
    print(f"\npolicy:  {policy}   (of the last round, whole weights)")
    return 0


def _asked(overrides: Sequence[str]) -> tuple[Rounds, list[str], str]:
    """The rounds, the words that are the trial's, and the name of the sweep."""
    import yaml

    fields: dict[str, Any] = {}
    words, name = [], ""
    for word in overrides:
        key, _, value = word.partition("=")
        if key == "rounds" or key.startswith("iterate."):
            fields[key.removeprefix("iterate.")] = yaml.safe_load(value)
        elif key == "sweep":
            name = value
        else:
            words.append(word)
    if "rounds" not in fields:
        raise UserError("says how many rounds there are", key="rounds", value=None, fix="rounds=3")
    return build({"_target_": f"{__name__}.Rounds", **fields}, path="iterate", base=Rounds), words, name


def _one_trial(words: Sequence[str], name: str, folders: Sequence[str]) -> None:
    """Raise where the command line is no single trial that trains and keeps what it has learned."""
    from harness.sweep.expand import plan_sweep

    sweep = plan_sweep([*words, f"sweep={name}{ROUND}1"], multirun=True, config_dirs=folders)
    if len(sweep.points) != 1:
        rule = f"names {count(len(sweep.points), 'trial')}, and rounds go on from one policy"
        raise UserError(rule, key="iterate", fix="name one value for each key")
    setup = sweep.points[0].setup
    if not setup.algo.trains:
        raise UserError("trains nothing, so no round has another policy", key="algo", value=setup.algo.name)
    if setup.train.save == "none":
        rule = "keeps no policy to begin the next round with"
        raise UserError(rule, key="train.save", value="none", fix="leave it out")


def _without_model(words: Sequence[str]) -> list[str]:
    """The words without those that say which model the first round begins with."""
    from harness.models.hub import HF

    known = {f"model.{field.name}" for field in dataclasses.fields(HF) if field.name not in FIRST_OWN}
    keys = [(word, word.lstrip("+~").partition("=")[0]) for word in words]
    return [word for word, key in keys if key != "model" and (not key.startswith("model.") or key in known)]


def _merged(folder: Path, target: Path, dtype: str) -> Path:
    """The policy of a trial as whole weights; what another policy left there is written anew."""
    import shutil

    from harness.cli.export import quiet_libraries
    from harness.trial.exporting import export_merged, kept

    policy, mark = kept(folder), target.with_name(f"{target.name}.of")
    of = f"{policy.result.trial_id} {policy.result.attempt} {dtype}"
    if target.is_dir() and mark.is_file() and mark.read_text(encoding="utf-8") == of:
        return target.absolute()
    quiet_libraries()
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    export_merged(policy, target.absolute(), dtype, say)
    mark.write_text(of, encoding="utf-8")
    return target.absolute()


def _table(found: Sequence[tuple[TrialResult, int]]) -> str:
    """A line for each round, with those of the usual figures that there are."""
    names = [name for name in SHOWN if any(name in result.metrics for result, _ in found)]
    base = found[0][0].metrics
    begun = [formatting.number(base.get(name.replace("eval/", "baseline/", 1))) for name in names]
    rows = [["before", "–", *begun]]
    for result, number in found:
        figures = [formatting.number(result.metrics.get(name)) for name in names]
        rows.append([str(number), result.trial_id, *figures])
    heads = ["round", "trial", *(name.removeprefix("eval/").replace("_", " ") for name in names)]
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [heads, *rows]
    )
