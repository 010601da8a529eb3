"""``python -m harness report``: what was tracked of a sweep, as markdown with plots."""

from __future__ import annotations

import argparse
from typing import NoReturn

from harness.errors import UserError

OVERRIDES = {"tracking.uri": "tracking_uri", "tracking.experiment": "experiment", "sweep": "sweep"}


class _Parser(argparse.ArgumentParser):
    """Complains as the rest of the harness does."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message, key="report", fix="see `python -m harness report --help`")


def main(argv: list[str]) -> int:
    """Write the report and print its path.

    Raises:
        UserError: an unknown option, store, sweep or folder.
    """
    parser = _Parser(
        prog="python -m harness report", description="Markdown report with plots of a sweep, from MLflow alone."
    )
    parser.add_argument("--sweep", metavar="NAME", help="default: the latest")
    parser.add_argument("--out", metavar="DIR", help="default: reports/<sweep>")
    parser.add_argument("--tracking-uri", metavar="URI", default="sqlite:///mlflow.db", help="default: %(default)s")
    parser.add_argument("--experiment", metavar="NAME", default="harness", help="default: %(default)s")
    parser.add_argument(
        "--from-folder",
        metavar="DIR",
        help="read result.json files below outputs/<sweep> instead: no series, no samples",
    )
    parser.add_argument("overrides", nargs="*", metavar="tracking.uri=URI", help=f"also {', '.join(OVERRIDES)}=...")
    try:
        options = parser.parse_args(argv)
    except SystemExit:  # --help
        return 0
    for override in options.overrides:
        key, _, value = override.partition("=")
        if key not in OVERRIDES or not value:
            raise UserError("not understood", key="report", value=override, fix=f"known: {', '.join(OVERRIDES)}=...")
        setattr(options, OVERRIDES[key], value)
    if options.from_folder and options.sweep:
        raise UserError("the folder names the sweep already", key="--sweep", value=options.sweep, fix="leave it out")

    from harness.report.markdown import write_report, write_report_from_folder

    if options.from_folder:
        path = write_report_from_folder(options.from_folder, options.out)
    else:
        path = write_report(options.tracking_uri, options.sweep, options.out, options.experiment)
    print(path)
    return 0
