"""Tables and pages for people: Markdown, and a file of HTML that needs no other one, made from it."""

from __future__ import annotations

import html
import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:#24292f}"
    "table{border-collapse:collapse}td,th{padding:.2rem .8rem .2rem 0;text-align:left;border-bottom:1px solid #d0d7de}"
    "h1+p{font-size:1.2rem;border-left:4px solid #c2522d;padding-left:.8rem}"
)


def table(heading: Sequence[str], rows: Iterable[Sequence[object]], numbers: int = 0) -> str:
    """A table whose last `numbers` columns are aligned to the right."""
    rule = ["---"] * (len(heading) - numbers) + ["---:"] * numbers
    lines = [f"| {' | '.join(map(str, row))} |" for row in (heading, *rows)]
    return "\n".join([lines[0], f"|{'|'.join(rule)}|", *lines[1:]])


def bullets(lines: Iterable[str]) -> str:
    """A list."""
    return "\n".join(f"- {line}" for line in lines)


def html_page(title: str, markdown: str, figures: Sequence[Figure] = ()) -> str:
    """The page of a Markdown text, what follows its heading set off, with pictures below."""
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    head = f'<!doctype html><meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    return "\n".join([head, body, *map(_svg, figures)]) + "\n"


def _svg(figure: Figure) -> str:
    from matplotlib import rc_context

    stream = io.StringIO()
    with rc_context({"svg.hashsalt": "rerankzoo"}):  # else its ids are others each time
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()[stream.getvalue().index("<svg") :]
