"""``python -m harness report``: what was tracked of a sweep, as markdown with plots."""

from __future__ import annotations

from harness.commandline import Parser
from harness.errors import UserError

FORMATS = ("md", "html", "csv", "parquet")


def main(argv: list[str]) -> int:
    """Write the report and print its path.

    Raises:
        UserError: an unknown option, store, sweep or folder.
    """
    parser = Parser("report", "Markdown report with plots of a sweep, from MLflow alone.")
    parser.add_argument("--sweep", metavar="NAME", help="default: the latest")
    parser.add_argument("--out", metavar="DIR", help="default: reports/<sweep>")
    parser.add_argument(
        "--from-folder",
        metavar="DIR",
        help="read result.json files below outputs/<sweep> instead: no series, no samples",
    )
    parser.add_argument("--format", metavar="LIST", default="md", help="of md,html,csv,parquet; default: md")
    parser.add_store()
    options = parser.options(argv)
    if options is None:
        return 0
    if options.from_folder and options.sweep:
        raise UserError("the folder names the sweep already", key="--sweep", value=options.sweep, fix="leave it out")

    formats = tuple(options.format.split(","))
    if unknown := [f for f in formats if f not in FORMATS]:
        raise UserError("unknown format", key="--format", value=",".join(unknown), fix=f"known: {', '.join(FORMATS)}")

    from harness.report.markdown import write_report, write_report_from_folder

    if options.from_folder:
        path = write_report_from_folder(options.from_folder, options.out, formats)
    else:
        path = write_report(options.tracking_uri, options.sweep, options.out, options.experiment, formats)
    print(path)
    return 0
