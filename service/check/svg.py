"""SVG: shapes and words as elements of a picture, by hand. Knows no model; what is written is escaped."""

from __future__ import annotations

from xml.sax.saxutils import escape

import numpy as np

INK, FAINT, RULE = "#1f2933", "#66727f", "#dde2e8"
BLUE, ORANGE, GREEN, RED, BAND = "#2f6fb3", "#d9772b", "#2e8b57", "#c0392b", "#e9eef5"


def page(width: float, height: float, parts: list[str], title: str) -> str:
    """A whole picture on a white ground."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" font-family="Helvetica, Arial, sans-serif" font-size="12" role="img">'
    )
    ground = f'<rect width="{width:g}" height="{height:g}" fill="white"/>'
    return "\n".join([head, f"<title>{escape(title)}</title>", ground, *parts, "</svg>", ""])


def text(
    x: float, y: float, words: str, *, size: float = 12, colour: str = INK, anchor: str = "start", bold: bool = False
) -> str:
    """Words at a place."""
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" fill="{colour}" text-anchor="{anchor}"{weight}>'
        f"{escape(words)}</text>"
    )


def line(x1: float, y1: float, x2: float, y2: float, *, colour: str = RULE, width: float = 1.0, dash: str = "") -> str:
    """A straight line."""
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{width:g}"{dashes}/>'


def box(x: float, y: float, width: float, height: float, colour: str, radius: float = 0.0) -> str:
    """A filled rectangle."""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(0.0, width):.1f}" height="{max(0.0, height):.1f}" '
        f'fill="{colour}" rx="{radius:g}"/>'
    )


def dot(x: float, y: float, colour: str, radius: float = 2.0) -> str:
    """A filled circle."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{colour}"/>'


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from low to high, about so many.

    >>> ticks(0.0, 10.0), ticks(-34.0, -13.0)
    ([0.0, 2.0, 4.0, 6.0, 8.0, 10.0], [-30.0, -25.0, -20.0, -15.0])
    """
    rough = max(high - low, 1e-12) / count
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(power * unit for unit in (1, 2, 5, 10) if power * unit >= rough * (1 - 1e-9))
    return [
        float(step * index) for index in range(int(np.ceil(low / step - 1e-9)), int(np.floor(high / step + 1e-9)) + 1)
    ]


def number(value: float) -> str:
    """A number as it is printed, with a minus and not a hyphen."""
    return f"{value:g}".replace("-", "−")


def wrapped(words: str, length: int) -> list[str]:
    """Words in lines of no more than so many letters, where they can be broken."""
    lines = [""]
    for word in words.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > length:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
