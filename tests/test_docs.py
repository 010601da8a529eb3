"""Every page's links to files and headings resolve, and every committed plot is shown somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PLACES = ("docs", "experiments", "reports")
PAGES = sorted([ROOT / "README.md", *(p for place in PLACES for p in ROOT.glob(f"{place}/**/*.md"))])
BLOCK = re.compile(r"^```.*?^```", flags=re.DOTALL | re.MULTILINE)


def links(page: Path) -> list[str]:
    found = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", BLOCK.sub("", page.read_text(encoding="utf-8"))))
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.strip().lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_of_a_page_resolve(page):
    broken = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and there.suffix == ".md" and anchor not in anchors(there)):
            broken.append(link)
    assert not broken


def test_committed_plots_are_shown():
    shown = {(page.parent / link).resolve() for page in PAGES for link in links(page)}
    plots = {plot for place in PLACES for plot in ROOT.glob(f"{place}/**/*.png")}
    assert len(plots) > 30 and not plots - shown


def test_there_are_pages_and_links_to_check():
    assert len(PAGES) > 15 and sum(map(len, map(links, PAGES))) > 60
