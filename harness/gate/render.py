"""A gate's findings for a terminal, a pull request, a test report and GitHub's annotations. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from xml.etree import ElementTree

from harness.base import formatting
from harness.gate.decide import Finding, Outcome

MARKS = {
    Outcome.REGRESSED: "✗",
    Outcome.MISSING: "✗",
    Outcome.NOT_COMPARABLE: "✗",
    Outcome.IMPROVED: "↑",
    Outcome.SAME: "✓",
    Outcome.INCONCLUSIVE: "?",
    Outcome.SKIPPED: "-",
    Outcome.NEW: "+",
    Outcome.CHANGED: "≠",
}
COLUMNS = ("recipe", "metric", "baseline", "candidate", "change", "interval", "tolerated loss", "seeds", "outcome")


def verdict(findings: Sequence[Finding]) -> str:
    """One sentence; a gate that could not have seen what it is for says so before it counts."""
    failed = [f for f in findings if f.fails]
    counts: dict[str, int] = {}
    for finding in findings:
        counts[finding.outcome] = counts.get(finding.outcome, 0) + 1
    told = ", ".join(f"{n} {outcome}" for outcome, n in counts.items())
    return f"{'FAILED' if failed else 'passed'}{_blind(findings)}: {told or 'nothing to decide'}"


def _blind(findings: Sequence[Finding]) -> str:
    """What could not have been seen, in how many of the metrics."""
    unseen = [f for f in findings if f.blind]
    if not unseen:
        return ""
    asked = sum(f.metric is not None for f in findings)
    losses = sorted(f.detectable for f in unseen if f.detectable is not None)
    below = f"a loss below {formatting.number(losses[0])}" if losses else ""
    if len(losses) > 1 and formatting.number(losses[-1]) != formatting.number(losses[0]):
        below += f" (the worst: {formatting.number(losses[-1])})"
    none = len(unseen) - len(losses)
    what = " or ".join([below] * bool(losses) + [f"any loss at all (in {none})" if losses else "any loss"] * bool(none))
    return f", but could not have seen {what} in {len(unseen)} of {asked} metrics"


def as_text(findings: Sequence[Finding], title: str) -> str:
    """The verdict, lines of aligned columns, the verdict again for who reads the end; control characters as text."""
    rows = [[MARKS[f.outcome], *map(formatting.printable, _cells(f))] for f in findings]
    head = ["", *COLUMNS]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]]
    said = verdict(findings)
    return "\n".join([said, title, *lines, said]) + "\n"


def as_markdown(findings: Sequence[Finding], title: str) -> str:
    """A heading, the verdict and a table; names are data and escaped."""
    rows = [[MARKS[f.outcome], *(formatting.escape(c) for c in _cells(f))] for f in findings]
    parts = [f"## Gate {verdict(findings)}", formatting.escape(title), formatting.table(["", *COLUMNS], rows, left=3)]
    parts.append(
        "Change is candidate less baseline, with the interval at which an unchanged recipe fails one gate in a hundred "
        "(or as the rules say). ✗ fails the gate."
    )
    return "\n\n".join(parts) + "\n"


def as_junit(findings: Sequence[Finding], title: str) -> str:
    """A test case per recipe and metric, as test reporters of CI systems read it."""
    suite = ElementTree.Element(
        "testsuite",
        name=formatting.printable(title),
        tests=str(len(findings)),
        failures=str(sum(f.fails for f in findings)),
        skipped=str(sum(f.outcome is Outcome.SKIPPED for f in findings)),
    )
    for finding in findings:
        name = formatting.printable(finding.metric or "recipe")
        case = ElementTree.SubElement(suite, "testcase", classname=formatting.printable(finding.recipe), name=name)
        if finding.fails:
            ElementTree.SubElement(case, "failure", message=_sentence(finding), type=str(finding.outcome))
        elif finding.outcome is Outcome.SKIPPED:
            ElementTree.SubElement(case, "skipped", message=_sentence(finding))
        else:
            ElementTree.SubElement(case, "system-out").text = _sentence(finding)
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"


def as_github(findings: Sequence[Finding], title: str) -> str:
    """Workflow commands: an error per failure, and the verdict as a notice.

    An open question that does not fail is no annotation: four seeds leave some on every run.
    """
    lines = [
        f"::error title={_property(f'{f.recipe}: {f.metric or f.outcome}')}::{_message(_sentence(f))}"
        for f in findings
        if f.fails
    ]
    return (
        "\n".join([*lines, f"::notice title={_property('Gate')}::{_message(f'{title}: {verdict(findings)}')}"]) + "\n"
    )


FORMATS: Mapping[str, tuple[str, Callable[[Sequence[Finding], str], str]]] = {
    "text": ("gate.txt", as_text),
    "markdown": ("gate.md", as_markdown),
    "junit": ("gate.xml", as_junit),
    "github": ("gate.github.txt", as_github),
}
"""Format -> name of its file, and who writes it."""


def _cells(finding: Finding) -> list[str]:
    seeds = "" if finding.seeds is None else "{} / {}".format(*finding.seeds)
    interval = (
        ""
        if finding.low is None or finding.high is None
        else f"[{formatting.number(finding.low, signed=True)}, {formatting.number(finding.high, signed=True)}]"
    )
    numbers = [
        "" if value is None else formatting.number(value, signed=signed)
        for value, signed in ((finding.before, False), (finding.after, False), (finding.change, True))
    ]
    tolerance = "" if finding.tolerance is None else formatting.number(finding.tolerance)
    outcome = f"{finding.outcome}: {finding.note}" if finding.note else str(finding.outcome)
    return [finding.recipe, finding.metric or "", *numbers, interval, tolerance, seeds, outcome]


def _sentence(finding: Finding) -> str:
    said = f"{finding.recipe}: {finding.metric + ' ' if finding.metric else ''}{finding.outcome}"
    if finding.note:
        said += f" ({finding.note})"
    if finding.before is not None and finding.after is not None:
        said += f", {formatting.number(finding.before)} → {formatting.number(finding.after)}"
    if finding.low is not None and finding.high is not None:
        said += (
            f", change {formatting.number(finding.low, signed=True)} to {formatting.number(finding.high, signed=True)}"
        )
    return formatting.printable(said)


def _message(words: str) -> str:
    return words.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(words: str) -> str:
    return _message(formatting.printable(words)).replace(":", "%3A").replace(",", "%2C")
