"""``harness label``: a judge compares the replies in a file, both ways round; its verdicts become preference rows."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.base.commandline import Parser, positive
from harness.base.errors import UserError, when_memory_runs_out

EPILOG = """\
The file holds a prompt beside chosen and rejected (whose labels the judge is then held against), or beside several
replies. Answers are kept as they come: if the judge fails, the same command goes on where it was.

examples:
  python -m harness label --data pairs.jsonl --to labelled.jsonl --judge local judge.path=./a-model
  python -m harness label --data drafts.jsonl --replies reply_a,reply_b --to labelled.jsonl \\
      --judge served judge.url=http://127.0.0.1:8000/v1 judge.model=NAME
  python -m harness algo=dpo task=preferences task.path=labelled.jsonl model=hf model.path=./my-model
"""
ANNOTATOR = "annotator"
"""Begins the names of columns that are taken as annotators' where none is named."""


def main(argv: list[str]) -> int:
    """Write the rows and a card beside them, and print that card's figures.

    Raises:
        UserError: the file or the judge is not as it must be, or the judge gives no answer.
    """
    parser = Parser("label", __doc__ or "")
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, EPILOG
    parser.add_argument("--data", metavar="FILE", required=True, help="rows: .jsonl, .json, .parquet, .csv, .tsv")
    parser.add_argument("--to", metavar="OUT.jsonl", required=True, help="the rows; OUT.md beside it says how it went")
    parser.add_argument("--judge", metavar="NAME", help="served, local, longer, or your own; also judge=NAME")
    parser.add_argument(
        "--beside", metavar="NAME", help="another judge, in the table of agreement alone; beside.KEY=VALUE"
    )
    parser.add_argument("--replies", metavar="COLUMNS", default="", help="columns of a reply each, or one of lists")
    parser.add_argument(
        "--annotators", metavar="COLUMNS", help=f"of people's labels; default: those named {ANNOTATOR}…"
    )
    parser.add_argument("--rows", metavar="N", type=positive, help="only so many rows, from the top")
    parser.add_argument("--config-dir", metavar="DIR", help="a folder with YAML of your own")
    parser.add_argument("overrides", nargs="*", metavar="judge.KEY=VALUE", help="of the judge; also cache.dir, plugins")
    if (options := options_of(parser, argv)) is None:
        return 0
    target, page = _targets(options.to)
    names = {"judge": options.judge}
    if options.beside or any(o.startswith("beside=") for o in options.overrides):
        names["beside"] = options.beside
    roles, cache = asked_from(names, options.overrides, options.config_dir, command="label")
    judge, beside = roles["judge"], roles.get("beside")

    from harness.cli.export import quiet_libraries
    from harness.judges.labelling import card, label, questions_of
    from harness.runner.display import Display, say
    from harness.tasks.reading.files import read_table
    from harness.telemetry.waiting import PRESENT

    quiet_libraries()
    PRESENT.settle()
    table = read_table(options.data, key="--data", max_rows=options.rows)
    annotators = _annotators(options.annotators, table.columns)
    questions, notes = questions_of(table, _names(options.replies), annotators)
    display = Display(f"label {Path(options.data).name}")
    fix = "see to memory (judge.batch_size, a smaller model), and begin again: answers are kept"
    with when_memory_runs_out(
        UserError("memory ran out where it worked", key="judge", value=type(judge).__name__, fix=fix)
    ):
        found, bill = label(
            judge, questions, cache, lambda what, done, total: display.update(what, float(done), total, None), beside
        )
    notes += [f"{bill.asked:,} answers were asked for, and {bill.kept:,} were there already"]
    page.write_text(card(found, title=Path(options.data).name, notes=notes), encoding="utf-8")
    write_rows(target, found.rows)
    width = max(map(len, found.facts))
    print("\n".join(f"{name:<{width}}  {words}" for name, words in found.facts.items()))
    for note in notes:
        say(note)
    print(target)
    return 0


def asked_from(
    names: Mapping[str, str | None], overrides: Sequence[str], config_dir: str | None, *, command: str
) -> tuple[dict[str, Any], Path]:
    """Judges by the roles that they have in a command, each with overrides of its own (``judge.url=…``).

    Raises:
        UserError: one is not named, or something is wrong with it before it is asked.
    """
    from harness.config.building import build
    from harness.config.compose import compose, hydra_config
    from harness.judges.base import Judge
    from harness.store.cache import cache_dir

    chosen = {role: name for role, name in names.items() if name}
    chosen |= {role: value for role, _, value in (o.partition("=") for o in overrides) if role in names}
    rest = [o for o in overrides if o.partition("=")[0] not in names]
    known = (*(f"{role}." for role in names), "cache.dir=", "plugins=")
    if odd := [o for o in rest if not o.startswith(known)]:
        fix = f"known: {', '.join(f'{role}.KEY=…' for role in names)}, cache.dir=…, plugins=…"
        raise UserError("not understood", key=command, value=odd[0], fix=fix)
    if absent := [role for role in names if role not in chosen]:
        role = absent[0]
        fix = f"--{role} served {role}.model=NAME, or --{role} local {role}.path=FOLDER"
        raise UserError(f"names no {role}", key=f"--{role}", fix=fix)
    with hydra_config([config_dir] if config_dir else []):
        plain = compose([*(f"+judge@{role}={name}" for role, name in chosen.items()), *rest])
    plugins = tuple(plain.get("plugins") or ())
    found = {role: build(plain[role], path=role, plugins=plugins, base=Judge) for role in names}
    for role, judge in found.items():
        for error in judge.problems():
            key = re.sub(r"^judge\b", role, error.key or role)
            raise UserError(error.rule, key=key, value=error.value, fix=error.fix)
    return found, cache_dir(plain)


def options_of(parser: Parser, argv: Sequence[str]) -> Any | None:
    """The options, with ``--judge.url=…`` as ``judge.url=…``; None where only help was asked for."""
    ours = ("--judge.", "--beside.", "--writer.", "--cache.dir=")
    try:
        return parser.parse_intermixed_args([a.removeprefix("--") if a.startswith(ours) else a for a in argv])
    except SystemExit:  # --help
        return None


def _names(words: str | None) -> list[str]:
    return [name.strip() for name in (words or "").split(",") if name.strip()]


def _annotators(words: str | None, columns: Sequence[str]) -> list[str]:
    return [name for name in columns if name.startswith(ANNOTATOR)] if words is None else _names(words)


def _targets(to: str) -> tuple[Path, Path]:
    """Where the rows and their card go; neither may be there."""
    target = Path(to).expanduser().absolute()
    if target.suffix != ".jsonl":
        raise UserError("must end in .jsonl", key="--to", value=to, fix=f"--to {target.stem}.jsonl")
    page = target.with_suffix(".md")
    for file in (target, page):
        if file.exists():
            raise UserError("is there already", key="--to", value=str(file), fix="name another file, or remove it")
    if not target.parent.is_dir():
        raise UserError("no such folder", key="--to", value=str(target.parent), fix="make it first")
    return target, page


def write_rows(target: Path, rows: Sequence[Any]) -> None:
    """All rows or no file."""
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    draft.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    os.replace(draft, target)
