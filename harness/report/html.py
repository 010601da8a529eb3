"""The report as one HTML page. Model text stays data: raw HTML in the markdown is shown and not obeyed."""

from __future__ import annotations

import re
from base64 import b64encode
from html import escape
from pathlib import Path

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; padding: 0 1rem; max-width: 100rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: .82rem;
  background: linear-gradient(to left, Canvas 40%, transparent) right / 2.5rem 100% no-repeat local,
    linear-gradient(to left, #8888, transparent) right / .9rem 100% no-repeat scroll; }
th, td { padding: .25rem .4rem; border-bottom: 1px solid #8884; vertical-align: top; }
th { border-bottom-color: #888; }
td { font-variant-numeric: tabular-nums; max-width: 34rem; overflow-wrap: break-word; }
th:first-child, td:first-child { position: sticky; left: 0; background: Canvas; }
td:first-child { min-width: 11rem; }
td span { white-space: nowrap; }
img { max-width: 100%; background: #fff; }
blockquote { border-left: 4px solid #d55e00; margin: 1rem 0; padding: .1rem 1rem; }
pre { background: #8881; padding: .7rem; overflow-x: auto; }
"""


FIGURE = re.compile(r'(<td style="text-align:right">)([^<]+)</td>')
IMAGE = re.compile(r'<img src="([\w.-]+\.png)"')


def page(markdown: str, title: str, images: Path | None = None) -> str:
    """A whole page, with its style in it and no script, and the plots of the folder ``images``: it can be sent.

    An image that is not there stays a link.
    """
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    body = FIGURE.sub(_breakable, body)
    if images is not None:
        body = IMAGE.sub(lambda found: _held(found, images), body)
    head = [
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<link rel="icon" href="data:,">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
    ]
    return "\n".join(
        ["<!doctype html>", '<html lang="en">', "<head>", *head, "</head>", "<body>", body, "</body>", "</html>", ""]
    )


def _breakable(cell: re.Match[str]) -> str:
    """A figure that a narrow page may break before its brackets, and nowhere else."""
    parts = re.split(r" (?=[\[(])", cell[2])
    return cell[1] + " ".join(f"<span>{part}</span>" for part in parts) + "</td>"


def _held(found: re.Match[str], folder: Path) -> str:
    image = folder / found[1]
    if not image.is_file():
        return found[0]
    return f'<img src="data:image/png;base64,{b64encode(image.read_bytes()).decode()}"'
