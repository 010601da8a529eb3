"""``python -m harness init``: an experiment, a gate and a CI file for one's own model and data. No torch here."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from string import Template

from harness.base.commandline import Parser
from harness.base.errors import UserError
from harness.store.result import replace_text

FOLDER = "alignment"
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
FILES = {
    f"{FOLDER}/experiment/$name.yaml": """\
# @package _global_
# What a change must not make worse: python -m harness -m --config-dir $folder experiment=$name sweep=$name
defaults:
  - override /model: hf
  - override /task: $task
model:
  path: $model
task:
  path: $data
hydra:
  sweeper:
    params:
      algo: $algo
      adapter: $adapter
      seed: $seeds
""",
    f"{FOLDER}/rules/$name.yaml": """\
# What may get worse, and by how much. Every rule costs the others power: keep those that you would act on.
_target_: harness.gate.rules.Rules
false_alarms: 0.01       # that an unchanged recipe fails, over all metrics and recipes of one gate
inconclusive: pass       # or fail
fail_if_blind: false     # or true: fail where the gate could not have seen a loss of a rule's must_see (0.05)
metrics:
$rules  memory/peak_mb: {direction: down, relative: 0.1, same_device: true}
  throughput/train_tokens_per_s: {direction: up, relative: 0.3, same_device: true}
""",
    f"{FOLDER}/$name.sh": """\
#!/usr/bin/env bash
# Sweep, report, gate; the exit code is the gate's, to which a trial that did not finish is missing. Overrides of the
# sweep may follow.
# The baseline is written once, from many seeds that the gate does not use:
#   python -m harness -m --config-dir $folder experiment=$name "seed=range(100,120)" sweep=$name-baseline
#   python -m harness gate --update --baseline $folder/$name.json --candidate $name-baseline \\
#       --rules $folder/rules/$name.yaml --reason "the first"
set -euo pipefail
python -m harness -m --config-dir $folder experiment=$name sweep=$name "$$@" || {
    code=$$?
    [ "$$code" -eq 1 ] || exit "$$code" # 1: a trial did not finish, and the report says which
}
python -m harness report --sweep $name
python -m harness gate --baseline $folder/$name.json --candidate $name --format text,github
""",
    ".github/workflows/$name-gate.yml": """\
# For a runner of your own with a GPU and with the harness installed; on a CPU only a small model ends in time.
name: $name gate
on:
  pull_request:
  workflow_dispatch:

permissions:
  contents: read

jobs:
  gate:
    runs-on: [self-hosted, gpu]
    steps:
      - uses: actions/checkout@v4
      - name: Sweep, report and gate
        run: bash $folder/$name.sh
      - name: Keep the report
        if: always()
        uses: actions/upload-artifact@v4
        with:
          name: $name-report
          path: reports/$name
""",
}
RULES = {
    "preferences": {"eval/preference_accuracy": "{direction: up, absolute: 0.02}"},
    "problems": {
        "eval/true_reward": "{direction: up, absolute: 0.02}",
        "eval/correct": "{direction: up, absolute: 0.02}",
    },
}
"""By task: what it is judged by, and the loss that is tolerated."""


def main(argv: list[str]) -> int:
    """Write an experiment, a gate's rules and a CI file for a model and data of your own; nothing is overwritten.

    Raises:
        UserError: a bad name, missing data, or a file that is there already.
    """
    parser = Parser("init", main.__doc__.split("\n\n")[0] if main.__doc__ else "")
    parser.add_argument("name", metavar="NAME", help="of the experiment, in lower case")
    parser.add_argument("--model", metavar="PATH", required=True, help="a folder, or an id of the hub")
    parser.add_argument("--data", metavar="FILE", help="preference pairs")
    parser.add_argument("--problems", metavar="FILE", help="prompts with answers, in place of pairs")
    parser.add_argument("--algo", metavar="LIST", help="default: dpo for pairs, grpo for problems")
    parser.add_argument("--adapter", metavar="LIST", default="lora", help="default: %(default)s")
    parser.add_argument("--seeds", metavar="N", type=int, default=4, help="of each gate; default: %(default)s")
    parser.add_argument("--dir", metavar="DIR", type=Path, default=Path(), help="the root of your repository")
    parser.set_defaults(overrides=())
    options = parser.options(argv)
    if options is None:
        return 0
    data = options.problems or options.data
    wrong = _wrong(options.name, options.data, options.problems, options.seeds, options.dir)
    if wrong is not None:
        raise wrong
    task = "problems" if options.problems else "preferences"
    words = {
        "name": options.name,
        "folder": FOLDER,
        "task": task,
        "model": _placed(options.model, options.dir),
        "data": _placed(data, options.dir),
        "algo": options.algo or ("grpo" if options.problems else "dpo"),
        "adapter": options.adapter,
        "seeds": ",".join(map(str, range(options.seeds))),
        "rules": "".join(f"  {metric}: {rule}\n" for metric, rule in RULES[task].items()),
    }
    for path in write(options.dir, words):
        print(path)
    check = f"python -m harness validate --config-dir {FOLDER} -m experiment={options.name}"
    print(
        f"look:  {check}\nthen:  the baseline, as {FOLDER}/{options.name}.sh says, and: bash {FOLDER}/{options.name}.sh"
    )
    return 0


def write(root: Path, words: Mapping[str, str]) -> list[Path]:
    """The files, with their words filled in.

    Raises:
        UserError: one of them is there, or cannot be written; then none is.
    """
    made = {root / Template(name).substitute(words): Template(text).substitute(words) for name, text in FILES.items()}
    if there := [path for path in made if path.exists()]:
        raise UserError("already exists", key="init", value=str(there[0]), fix="choose another name, or move it away")
    written: list[Path] = []
    try:
        for path, text in made.items():
            replace_text(path, text)
            written.append(path)
    except OSError as error:
        for path in written:
            path.unlink()
        raise UserError(f"cannot be written ({error.strerror or error})", key="--dir", value=str(root)) from None
    return list(made)


def _wrong(name: str, data: str | None, problems: str | None, seeds: int, root: Path) -> UserError | None:
    if not NAME.fullmatch(name):
        return UserError("is no name for files", key="init", value=name, fix="lower case, digits, - and _")
    if bool(data) == bool(problems):
        return UserError(
            "name the data, and one kind of it", key="init", value=name, fix="--data FILE, or --problems FILE"
        )
    if seeds < 2:
        return UserError(
            "a gate needs 2 seeds at least, to know how far they spread", key="--seeds", value=seeds, fix="--seeds 4"
        )
    file = data or problems or ""
    if not Path(file).is_file():
        return UserError(
            "there is no such file", key="--data" if data else "--problems", value=file, fix="check the path"
        )
    if not root.is_dir():
        return UserError("is not a folder", key="--dir", value=str(root), fix="the root of your repository")
    return None


def _placed(path: str, root: Path) -> str:
    """A path as seen from the root, in YAML's quotes where it needs them; a hub id as it stands."""
    seen = Path(path)
    if seen.exists():
        own = seen.resolve()
        path = str(own.relative_to(root.resolve())) if own.is_relative_to(root.resolve()) else str(own)
        path = f"./{path}" if not path.startswith(("/", ".")) else path
    return path if re.fullmatch(r"[\w./-]+", path) else json.dumps(path, ensure_ascii=False)  # which is YAML too
