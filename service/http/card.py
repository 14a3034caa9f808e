"""The card: a model's README.md and its pictures, as Markdown, or as a page for a browser. Knows no model.

An artifact may come from anywhere: all text is escaped before it is given any form, pictures are only those that the
artifact holds, and the page may load nothing else and run nothing.
"""

from __future__ import annotations

import html
import re
from collections.abc import Collection, Iterator

MARKDOWN, HTML, PNG = "text/markdown", "text/html", "image/png"
# nothing may be loaded but our pictures and the style below, nothing may run, and no other page may frame this one
GUARDED = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Vary": "Accept",
}
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1f2933}"
    "img{max-width:100%}table{border-collapse:collapse}td,th{border-top:1px solid #dde2e8;padding:.25rem .75rem;"
    "text-align:left;vertical-align:top}td:first-child{white-space:nowrap}pre{background:#f4f6f8;padding:.75rem;"
    "overflow:auto}code{font-size:.9em}"
)
RULE = re.compile(r"[|\s:-]*-[|\s:-]*")  # between a table's head and its lines
IMAGE = re.compile(r"!\[([^\]\n]*)\]\(([a-z0-9.-]+)\)")


def markdown(text: str, pictures: Collection[str]) -> str:
    """The card as it is, its pictures named as they are served beside it: `card/…`."""
    return IMAGE.sub(lambda found: f"![{found[1]}]({_place(found[2], pictures)})", text)


def page(text: str, pictures: Collection[str], title: str) -> str:
    """The card as a page: of Markdown only headings, tables, lists, code and the artifact's own pictures."""
    body = "\n".join(_block(block, pictures) for block in _blocks(text))
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def _place(name: str, pictures: Collection[str]) -> str:
    return f"card/{name}" if name in pictures else "#"


def _blocks(text: str) -> Iterator[str]:
    """What empty lines part, code in one piece."""
    for place, part in enumerate(re.split(r"^```.*$", text, flags=re.MULTILINE)):
        if place % 2:
            yield f"```{part}"
        else:
            yield from (block.strip("\n") for block in re.split(r"\n\s*\n", part) if block.strip())


def _block(block: str, pictures: Collection[str]) -> str:
    """One block of Markdown as HTML; what isn't known is a paragraph."""
    if block.startswith("```"):
        return f"<pre><code>{html.escape(block[3:].strip())}</code></pre>"
    if found := re.fullmatch(r"(#{1,6}) ([^\n]+)", block):
        level = len(found[1])
        return f"<h{level}>{_line(found[2])}</h{level}>"
    if (found := IMAGE.fullmatch(block)) and found[2] in pictures:
        return f'<p><img src="card/{html.escape(found[2])}" alt="{html.escape(found[1])}"></p>'
    lines = block.split("\n")
    if all(line.startswith("|") for line in lines):
        return f"<table>{_head(lines)}{''.join(_row(line) for line in lines if not RULE.fullmatch(line))}</table>"
    if all(line.startswith("- ") for line in lines):
        return f"<ul>{''.join(f'<li>{_line(line[2:])}</li>' for line in lines)}</ul>"
    return f"<p>{_line(' '.join(lines))}</p>"


def _head(lines: list[str]) -> str:
    """A table's head, taken from its lines; nothing where it says nothing, which Markdown can't leave out."""
    if len(lines) < 2 or not RULE.fullmatch(lines[1]):
        return ""
    head = lines.pop(0)
    return _row(head, "th") if head.strip("| ") else ""


def _row(line: str, kind: str = "td") -> str:
    cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
    return f"<tr>{''.join(f'<{kind}>{_line(cell.strip())}</{kind}>' for cell in cells)}</tr>"


def _line(text: str) -> str:
    """Words within a block: escaped, then code and bold; a backslash makes a mark a letter again.

    >>> _line(r"<b> `a_b` \\*not\\* **this**")
    '&lt;b&gt; <code>a_b</code> *not* <strong>this</strong>'
    """
    parts = html.escape(text, quote=True)
    parts = re.sub(r"(?<!\\)`([^`]+)`", r"<code>\1</code>", parts)
    parts = re.sub(r"(?<!\\)\*\*([^*\\]+)\*\*", r"<strong>\1</strong>", parts)
    return re.sub(r"\\([\\*_\[\]|#`]|&lt;|&gt;)", r"\1", parts)
