r"""``python -m harness iterate``: train, and begin again with what came of it (sample → judge → train).

    python -m harness iterate rounds=3 algo=dpo task=constitution task.prompts=prompts.txt \
        task.principles=principles.txt model=hf model.path=./my-model sweep=mine

Each round is one trial, the sweep `mine-round-1` and so on. The next one's model is the policy of the last, merged into
whole weights below outputs/mine-rounds, in a folder with the trial's name. All else is as in the first round, also the
model's tokens and the preset of `train`. Of a task that asks the model itself (task=constitution, judge=policy) the
rows are that policy's own, and all rounds hold out the same prompts. iterate.dtype=bfloat16 stores merged weights in
half the space, and rounds small changes away. Given again, the same command goes on where it was.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from annotated_types import Ge

from harness.base import formatting
from harness.base.errors import UserError
from harness.base.formatting import count
from harness.base.records import Outcome
from harness.config.building import build
from harness.runner.display import say

if TYPE_CHECKING:
    from harness.base.records import TrialResult
    from harness.models.base import Model
    from harness.trial.assemble import Setup

ROUND, POLICIES = "-round-", "-rounds"
FIRST_OWN = ("path", "revision", "gguf_file")
"""Fields of a model that say which one it is: from the second round on it is the last one's policy."""
UNKNOWN_YET = "policy"
"""Stands for the path of a policy that is not there yet."""
AGAINST_START = ("eval/win_rate", "eval/win_rate_length_controlled", "eval/kl_per_sequence")
"""Figures that compare a policy with the model that its training started from."""
PAIRS = "eval/preference_pairs"
SHOWN = ("eval/true_reward", "eval/preference_accuracy", "eval/win_rate", "eval/win_rate_length_controlled",
         "eval/kl_per_sequence", PAIRS)  # fmt: skip


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
    following = _following(words, _one_trial(words, name, flags[1:]), flags[1:])
    found: list[tuple[TrialResult, int]] = []
    start: list[str] = []
    policy = Path()
    for number in range(1, rounds.rounds + 1):
        say(f"round {number} of {rounds.rounds}")
        trial = [*(words if number == 1 else following), *start, f"sweep={name}{ROUND}{number}"]
        code, sweep = swept([*flags, *trial])
        folder = sweep.folder / sweep.points[0].trial.trial_id
        result = result_of(folder)
        if code or result is None or result.outcome is not Outcome.FINISHED:
            how = "did not begin" if result is None else f"ended as {result.outcome.value}"
            print(f"round {number} {how}, so there is no next one")
            return 1
        found.append((result, number))
        policy = _merged(folder, _place(folder, name, number, rounds.dtype), rounds.dtype)
        start = [f"model.path={typed(str(policy))}"]
    print(_table(found))
    print("\n".join(measured(found)))
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


def _one_trial(words: Sequence[str], name: str, folders: Sequence[str]) -> Setup:
    """The trial of the first round; raises if the command line is no single one that trains and keeps its policy."""
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
    return setup


def _following(words: Sequence[str], first: Setup, folders: Sequence[str]) -> list[str]:
    """The words of every later round but for its model's path: they come to what the first round came to.

    A model's YAML may say more than which model it is: tokens, a template, the preset of ``train``. The policy is read
    as any folder is (``model=hf``), so all of that is said in words.
    """
    from harness.config.compose import compose, hydra_config
    from harness.config.identity import flatten
    from harness.models.hub import HF

    kept = [word for word in words if word.lstrip("+~").partition("=")[0].partition(".")[0] != "model"]
    said = ["model=hf", *(f"model.{name}={typed(value)}" for name, value in _carried(first.model, HF).items())]
    with hydra_config(list(folders)):
        plain = compose([*kept, *said, f"model.path={UNKNOWN_YET}"])
    for group in ("train", "eval"):
        before, now = (flatten(config[group], f"{group}.") for config in (first.plain, plain))
        said += [
            f"{key}={typed(value)}"
            for key, value in before.items()
            if key in now and now[key] != value and not key.startswith("eval.evaluators.")
        ]
    return [*kept, *said]


def _carried(model: Model, kind: type[Model]) -> dict[str, Any]:
    """Fields of a model that its policy has too, where they are set."""
    defaults = {f.name: f.default for f in dataclasses.fields(kind) if f.name not in FIRST_OWN}
    found = {name: getattr(model, name, default) for name, default in defaults.items()}
    if not model.follows_device and found["dtype"] == "auto":
        found["dtype"] = "float32"  # which is what auto means to such a model
    return {name: value for name, value in found.items() if value != defaults[name]}


def typed(value: Any) -> str:
    """A value as the command line takes it: whatever a text holds stays as it is."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        parts = value.replace("${", "\\${").split("'")  # backslashes count before a quote alone
        return "'" + "\\'".join(p + "\\" * (len(p) - len(p.rstrip("\\"))) for p in parts) + "'"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{typed(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(typed, value)) + "]"
    return repr(value)


def _place(folder: Path, name: str, number: int, dtype: str) -> Path:
    """Where the policy of a trial goes: rounds of other settings under the same name have places of their own."""
    return folder.parent.with_name(f"{name}{POLICIES}") / f"{number}-{folder.name}-{dtype}"


def _merged(folder: Path, target: Path, dtype: str) -> Path:
    """The policy of a trial as whole weights, made once; what an earlier attempt at the trial left is replaced."""
    import shutil

    from filelock import FileLock

    from harness.cli.export import quiet_libraries
    from harness.trial.exporting import export_merged, kept

    policy, mark = kept(folder), target.with_name(f"{target.name}.of")
    of = f"{policy.result.trial_id} {policy.result.attempt} {dtype}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock")):
        if target.is_dir() and mark.is_file() and mark.read_text(encoding="utf-8") == of:
            return target.absolute()
        mark.unlink(missing_ok=True)  # first: whatever comes between leaves a folder that is made again
        quiet_libraries()
        if target.exists():
            shutil.rmtree(target)
        export_merged(policy, target.absolute(), dtype, say)
        draft = mark.with_name(f".{mark.name}.{os.getpid()}")
        draft.write_text(of, encoding="utf-8")
        os.replace(draft, mark)
    return target.absolute()


def _table(found: Sequence[tuple[TrialResult, int]]) -> str:
    """A line for each round, with those of the usual figures that there are."""
    names = [name for name in SHOWN if any(name in result.metrics for result, _ in found)]
    base = found[0][0].metrics
    begun = [_figure(name, base.get(name.replace("eval/", "baseline/", 1))) for name in names]
    rows = [["before", "–", *begun]]
    for result, number in found:
        figures = [_figure(name, result.metrics.get(name)) for name in names]
        rows.append([str(number), result.trial_id, *figures])
    heads = ["round", "trial", *(name.removeprefix("eval/").replace("_", " ") for name in names)]
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [heads, *rows]
    )


def _figure(name: str, value: float | None) -> str:
    """A cell; pairs are counted."""
    return formatting.number(value) if name != PAIRS or value is None else f"{value:,.0f}"


def measured(found: Sequence[tuple[TrialResult, int]]) -> list[str]:
    """What the figures of the rounds are measured on: whether lines of their table can be compared."""
    results = [result for result, _ in found]
    rows = {result.digests.get("held_out") for result in results}
    if len(rows) == 1 and None not in rows:
        told = ["all rounds are measured on the same held-out rows"]
    else:
        told = ["each round is measured on held-out rows of its own: lines may differ by the rows alone"]
    names = [n.removeprefix("eval/").replace("_", " ") for n in AGAINST_START if any(n in r.metrics for r in results)]
    if names:
        told.append(f"{', '.join(names)}: against the model that the round itself began with, not the first one")
    return told
