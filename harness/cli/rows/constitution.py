"""``harness constitution``: rows for training from principles, by which a model's replies are revised and judged."""

from __future__ import annotations

import argparse
import re
from contextlib import suppress
from pathlib import Path

from harness.base.commandline import Parser, positive
from harness.base.errors import UserError
from harness.cli.rows.label import asked_from, options_of

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
    parser.add_argument("--judge", metavar="NAME", help="who compares reply and revision: served, or local")
    parser.add_argument("--between", choices=["revision", "samples"], default="revision", help="what is compared")
    parser.add_argument("--people", metavar="FILE", help="pairs that people labelled, to hold the judge against")
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

    from harness.cli.export import quiet_libraries
    from harness.judges.principles import Constitution
    from harness.runner.display import Display, say
    from harness.telemetry.waiting import PRESENT

    quiet_libraries()
    PRESENT.settle()
    display = Display(f"constitution {Path(options.prompts).name}")
    new = not target.exists()
    target.mkdir(parents=True, exist_ok=True)
    try:
        task = Constitution(
            prompts=options.prompts,
            principles=options.principles,
            writer=writer,
            judge=judge,
            between=options.between,
            people=options.people,
            seed=options.seed,
            max_prompts=options.rows,
        )
        facts, asked = task.write(
            target, cache, lambda what, done, total: display.update(what, float(done), total, None)
        )
    except UserError as error:
        if new:
            with suppress(OSError):  # not empty
                target.rmdir()
        raise _as_typed(error) from None
    width = max(map(len, facts))
    print("\n".join(f"{name:<{width}}  {words}" for name, words in facts.items()))
    say(asked)
    print(target)
    return 0


def _as_typed(error: UserError) -> UserError:
    """Errors about the task's fields as errors about the options that fill them."""
    key = error.key or ""
    spelled = key.replace("task.", "--", 1) if key.startswith("task.") else key
    fix = re.sub(r"\btask\.(writer|judge)\.", r"\1.", error.fix) if error.fix else None
    return UserError(error.rule, key=spelled, value=error.value, fix=fix)
