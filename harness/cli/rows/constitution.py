"""``harness constitution``: rows for training from principles, by which a model's replies are revised and judged."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.base.commandline import Parser, positive
from harness.base.errors import UserError
from harness.cli.rows.label import asked_from, options_of, write_rows
from harness.judges.local import Local

EPILOG = """\
FOLDER gets revisions.jsonl (for algo=sft), pairs.jsonl (for everything else), both with the principle of each row, and
card.md. Answers are kept as they come: if a server fails, the same command goes on where it was.

example:
  python -m harness constitution --prompts prompts.txt --principles principles.txt --to made \\
      --writer local writer.path=./my-model --judge served judge.url=http://127.0.0.1:8000/v1 judge.model=NAME
  python -m harness algo=sft task=preferences task.path=made/revisions.jsonl model=hf model.path=./my-model
  python -m harness algo=dpo task=preferences task.path=made/pairs.jsonl model=hf model.path=./my-model
"""


def main(argv: list[str]) -> int:
    """Write the rows and their card, and print the card's figures.

    Raises:
        UserError: a file, the writer or the judge is not as it must be, or one of the two gives no answer.
    """
    parser = Parser("constitution", __doc__ or "")
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, EPILOG
    parser.add_argument(
        "--prompts", metavar="FILE", required=True, help="a prompt a line (.txt), or rows with a prompt"
    )
    parser.add_argument("--principles", metavar="FILE", required=True, help="a principle a line, or a list in .yaml")
    parser.add_argument("--to", metavar="FOLDER", required=True, help="where to; must be new or empty")
    parser.add_argument("--writer", metavar="NAME", help="who replies, criticises and revises: served, or local")
    parser.add_argument("--judge", metavar="NAME", help="who compares reply and revision: served, local, longer")
    parser.add_argument("--rows", metavar="N", type=positive, help="only so many prompts, from the top")
    parser.add_argument("--seed", type=int, default=0, help="of the principle that each prompt gets (%(default)s)")
    parser.add_argument("--config-dir", metavar="DIR", help="a folder with YAML of your own")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="writer.KEY, judge.KEY, cache.dir, plugins")
    if (options := options_of(parser, argv)) is None:
        return 0
    target = Path(options.to).expanduser().absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError("must be a new or an empty folder", key="--to", value=options.to, fix="name another")
    names = {"writer": options.writer, "judge": options.judge}
    roles, cache = asked_from(names, options.overrides, options.config_dir, command="constitution")
    writer, judge = roles["writer"], roles["judge"]
    if isinstance(writer, Local) and not any(o.startswith("writer.read=") for o in options.overrides):
        writer = replace(writer, read="words")
    for role in (writer, judge):
        if found := role.problems():
            raise found[0]

    from harness.judges.constitution import write
    from harness.judges.labelling import card
    from harness.runner.display import Display, say

    display = Display(f"constitution {Path(options.prompts).name}")
    made, asked = write(
        prompts_of(options.prompts, options.rows),
        principles_of(options.principles),
        writer,
        judge,
        cache,
        seed=options.seed,
        progress=lambda what, done, total: display.update(what, float(done), total, None),
    )
    target.mkdir(parents=True, exist_ok=True)
    page = card(made.pairs, title=Path(options.prompts).name, notes=[asked], beside=["principle"])
    (target / "card.md").write_text(page, encoding="utf-8")
    write_rows(target / "revisions.jsonl", made.revisions)
    write_rows(target / "pairs.jsonl", made.pairs.rows)
    width = max(map(len, made.pairs.facts))
    print("\n".join(f"{name:<{width}}  {words}" for name, words in made.pairs.facts.items()))
    say(asked)
    print(target)
    return 0


def prompts_of(path: str, most: int | None) -> list[Any]:
    """The distinct prompts of a file, in order.

    Raises:
        UserError: there are none, or the rows have no prompt.
    """
    from harness.tasks.base import prompt_key
    from harness.tasks.prompts import Prompts
    from harness.tasks.reading.checking import check
    from harness.tasks.reading.files import read_table

    if Path(path).suffix == ".txt":
        found: list[Any] = _lines(path, "--prompts")
    else:
        table = read_table(path, key="--prompts")
        found = [r["prompt"] for r in check(table, "prompts", Prompts({}).parser(table), allow_skipped=1.0).rows]
    return list({prompt_key(prompt): prompt for prompt in found}.values())[:most]


def principles_of(path: str) -> list[str]:
    """The principles of a file.

    Raises:
        UserError: there are none, or they are no texts.
    """
    if Path(path).suffix not in (".yaml", ".yml"):
        return _lines(path, "--principles")
    import yaml

    from harness.tasks.reading.files import existing

    try:
        found = yaml.safe_load(existing(path, "--principles").read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot be read: {' '.join(str(error).split())[:200]}", key="--principles", value=path
        ) from None
    if not isinstance(found, list) or not found or not all(isinstance(one, str) and one.strip() for one in found):
        raise UserError("must be a list of texts", key="--principles", value=path, fix="- Be honest.")
    return found


def _lines(path: str, key: str) -> list[str]:
    from harness.tasks.reading.files import existing

    try:
        found = [line.strip() for line in existing(path, key).read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError:
        raise UserError("is no text in UTF-8", key=key, value=path, fix="write it in UTF-8") from None
    if not any(found):
        raise UserError("holds no line", key=key, value=path, fix="write one a line")
    return [line for line in found if line]
