"""``python -m harness report``: what was tracked of a sweep, as markdown with plots."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from harness.base.commandline import OVERRIDES, Parser
from harness.base.errors import UserError
from harness.runner.display import say
from harness.store.mlflow_store import Tracking

if TYPE_CHECKING:
    from harness.report.leaderboard import Price

FORMATS = ("md", "html", "csv", "parquet")


NAMES = {"html": "report.html", "csv": "results.csv", "parquet": "results.parquet"}
"""What a format beside markdown is written to."""


def main(argv: list[str]) -> int:
    """Write the report, print the paths of what was written, and tell (on stderr) what it advises.

    Raises:
        UserError: an unknown option, store, sweep or folder.
    """
    parser = Parser(
        "report", "Markdown report with plots, from MLflow alone: of a sweep, of runs, or of a whole --experiment."
    )
    parser.add_argument("--sweep", metavar="NAME", help="default: the latest of the experiment 'harness'")
    parser.add_argument("--out", metavar="DIR", help="default: reports/<sweep>, or one named after what is reported on")
    parser.add_argument(
        "--from-folder",
        metavar="DIR",
        help="read the trials' folders below outputs/<sweep> instead of MLflow",
    )
    parser.add_argument("--runs", metavar="ID", nargs="+", default=(), help="MLflow run ids of trials, of any sweeps")
    parser.add_argument(
        "--price", metavar="PRICE", help="of an hour of the device, such as '2.50 EUR': adds what each trial cost"
    )
    parser.add_argument(
        "--rank-by", metavar="METRIC", help="of an evaluator; default: true reward, else preference accuracy"
    )
    parser.add_argument("--format", metavar="LIST", default="md", help="of md,html,csv,parquet; default: md")
    parser.add_store(None, "alone: all of its sweeps; with another choice: where they are (default: harness)")
    given = {a for a in argv if a.partition("=")[0] in OVERRIDES}  # --runs would take them for ids
    options = parser.options([a for a in argv if a in given] + [a for a in argv if a not in given])
    if options is None:
        return 0
    chosen = {"--from-folder": options.from_folder, "--sweep": options.sweep, "--runs": " ".join(options.runs)}
    if len(selected := {name: value for name, value in chosen.items() if value}) > 1:
        first, *others = selected.items()
        rule = f"{first[0]} says already what to report on"
        raise UserError(rule, key=others[0][0], value=others[0][1], fix="leave one of them out")
    formats = tuple(options.format.split(","))
    if unknown := [f for f in formats if f not in FORMATS]:
        raise UserError("unknown format", key="--format", value=",".join(unknown), fix=f"known: {', '.join(FORMATS)}")
    price = None if options.price is None else price_of(options.price)

    from harness.report import markdown
    from harness.report.gather import write_report
    from harness.report.sections import uses
    from harness.report.sources import Folder, Stored

    if options.from_folder:
        source = Folder(options.from_folder)
    else:
        experiment = options.experiment or Tracking().experiment
        whole = options.experiment is not None and not selected
        source = Stored(options.tracking_uri, options.sweep, experiment, runs=options.runs, whole=whole)
    done = write_report(source, options.out, formats, price=price, rank_by=options.rank_by)
    if said := markdown.advice(done.standings):
        say(f"advice:  {' '.join(said)}")
    if (place := uses.place_of_policy(done.standings.recipes, done.standings.metric)) is not None:
        say(f"policy:  {place}")
    for written in (done.path, *(done.path.with_name(NAMES[f]) for f in formats if f in NAMES)):
        print(written)
    return 0


def price_of(words: str) -> Price:
    """``2.50 EUR``, or an amount alone.

    Raises:
        UserError: not an amount, or a negative one.
    """
    from harness.report.leaderboard import Price

    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([^\W\d_]{1,8}|[€$£¥])?\s*", words)
    if found is None:
        raise UserError("is no amount of money", key="--price", value=words, fix="--price '2.50 EUR'")
    return Price(float(found.group(1)), found.group(2) or "")
