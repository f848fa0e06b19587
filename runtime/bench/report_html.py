"""A comparison as one HTML file that needs nothing else: the report's tables and its picture."""

from __future__ import annotations

import base64
import html
import io
import re

from tcomp.runtime.bench.measure import Comparison
from tcomp.runtime.bench.report import markdown, title

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; color: #222; }}
table {{ border-collapse: collapse; margin: 1em 0; }}
td, th {{ padding: .2em .8em; border-bottom: 1px solid #ccc; text-align: right; font-variant-numeric: tabular-nums; }}
td:first-child, th:first-child {{ text-align: left; }}
img {{ max-width: 100%; }} code {{ background: #f3f3f3; padding: .1em .3em; }}
</style></head><body>
{body}
<img alt="step times, kernels, roofline, memory" src="data:image/png;base64,{picture}">
<p>Made by <code>{command}</code></p>
</body></html>
"""


def page(c: Comparison, command: str) -> str:
    """The HTML text; `command` is what made it."""
    from tcomp.runtime.bench.report_png import draw

    picture = io.BytesIO()
    draw(c, picture, "png")
    return _PAGE.format(
        title=html.escape(title(c)),
        body=_body(markdown(c)),
        picture=base64.b64encode(picture.getvalue()).decode(),
        command=html.escape(command),
    )


def _body(text: str) -> str:
    """The report's own Markdown (headings, tables, lists, paragraphs) as HTML."""
    out: list[str] = []
    for block in re.split(r"\n{2,}", text.strip()):
        lines = block.splitlines()
        if block.startswith("### "):
            out.append(f"<h1>{html.escape(block[4:])}</h1>")
        elif block.startswith("|"):
            rows = [[html.escape(cell.strip()) for cell in line.strip("|").split("|")] for line in lines]
            head = "".join(f"<th>{cell}</th>" for cell in rows[0])
            body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows[2:])
            out.append(f"<table><tr>{head}</tr>{body}</table>")
        elif block.startswith("- "):
            out.append("<ul>" + "".join(f"<li>{html.escape(line[2:])}</li>" for line in lines) + "</ul>")
        else:
            out.append(f"<p>{html.escape(' '.join(lines))}</p>")
    return "\n".join(out)
