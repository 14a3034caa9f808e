"""Picture: a trial and its verdict as one SVG. Draws and judges nothing anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from service.artifact import Manifest
from service.check import svg
from service.check.svg import BAND, BLUE, FAINT, GREEN, INK, ORANGE, RED, RULE
from service.check.trial import Trial
from service.check.verdict import Finding, shape, uniformity

Doubles = NDArray[np.float64]

WIDTH, EDGE = 960.0, 40.0
PANEL, SMALL = 230.0, 92.0  # heights of the two upper panels, and of a histogram of ranks
BINS, MOST = 10, 8  # of a histogram of ranks; latents that are shown
MARKS = {"holds": ("✓", GREEN), "advice": ("!", ORANGE), "failure": ("✗", RED)}


def draw(manifest: Manifest, trial: Trial | None, findings: Sequence[Finding], verdict: str) -> str:
    """The picture: the verdict, the sandwich, the gaps, the ranks, and every finding."""
    broken = any(finding.kind == "failure" for finding in findings)
    parts = [svg.box(0, 0, WIDTH, 8, RED if broken else GREEN), svg.text(EDGE, 46, _short(verdict), size=20, bold=True)]
    y = 68.0
    if trial is not None and trial.numbers.sum() > 1:
        trial = trial.kept(trial.numbers)
        told = f"{len(trial.elbo)} rows of its own, {trial.draws} draws each, seed {trial.seed}; all in nats"
        parts.append(svg.text(EDGE, y, f"{manifest.description or manifest.name} · {told}", colour=FAINT))
        parts += _sandwich(trial, EDGE, y + 34, 540.0)
        parts += _gaps(trial, EDGE + 600, y + 34, WIDTH - 2 * EDGE - 600)
        y += PANEL + 110
        parts += _ranks(trial, y)
        y += 2 * SMALL + 118
    listed, y = _findings(findings, y + 8)
    return svg.page(WIDTH, y + 24, [*parts, *listed], verdict)


def _short(verdict: str, length: int = 84) -> str:
    return verdict if len(verdict) <= length else verdict[: length - 1].rstrip() + "…"


# ---------------------------------------------------------------- the sandwich and the gaps


def _sandwich(trial: Trial, x: float, y: float, width: float) -> list[str]:
    """Each row's ELBO, log p̂ and upper bound, in the order of log p̂."""
    parts = [svg.text(x, y, "Each row's log p(x), held from both sides", size=14, bold=True)]
    parts += _legend(x, y + 20, [("ELBO", BLUE), ("log p̂, from below", INK), ("from above", ORANGE)])
    top, left = y + 36, x + 46
    values = np.concatenate([trial.elbo, trial.lower, trial.upper])
    low, high = float(values.min()), float(values.max())
    at = _scale(low, high, top + PANEL - 24, top + 4)
    for tick in svg.ticks(low, high):
        parts += [
            svg.line(left, at(tick), x + width, at(tick)),
            svg.text(left - 6, at(tick) + 4, svg.number(tick), anchor="end", size=11, colour=FAINT),
        ]
    order = np.argsort(trial.lower)
    step = (x + width - left) / len(order)
    for place, row in enumerate(order):
        across = left + (place + 0.5) * step
        elbo, lower, upper = (at(float(values[row])) for values in (trial.elbo, trial.lower, trial.upper))
        parts.append(svg.line(across, elbo, across, lower, colour="#a9c4e2", width=min(2.0, step * 0.6)))
        parts.append(svg.dot(across, elbo, BLUE, min(2.2, step * 0.4)))
        parts.append(svg.line(across, lower, across, upper, colour=ORANGE, width=min(2.4, step * 0.6)))
        parts.append(svg.line(across - 0.45 * step, upper, across + 0.45 * step, upper, colour=ORANGE, width=1.4))
        parts.append(svg.line(across - 0.45 * step, lower, across + 0.45 * step, lower, colour=INK, width=1.4))
    parts.append(svg.text((left + x + width) / 2, top + PANEL + 8, "rows, by log p̂", anchor="middle", colour=FAINT))
    return parts


def _gaps(trial: Trial, x: float, y: float, width: float) -> list[str]:
    """How far the encoder's posterior is from the true one, row by row."""
    gap = trial.gap
    low, high = min(0.0, float(gap.min())), max(float(np.quantile(gap, 0.99)), 1e-3)
    counts, edges = np.histogram(np.minimum(gap, high), bins=18, range=(low, high))
    parts = [svg.text(x, y, "The gap: log p̂ − ELBO", size=14, bold=True)]
    parts.append(svg.text(x, y + 20, f"mean {gap.mean():.3g}, greatest {gap.max():.3g} nats", colour=FAINT))
    top, bottom = y + 36, y + 36 + PANEL - 24
    at = _scale(low, high, x, x + width)
    up = _scale(0.0, float(counts.max()), bottom, top + 4)
    for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True):
        parts.append(svg.box(at(left) + 0.5, up(count), at(right) - at(left) - 1, bottom - up(count), "#a9c4e2"))
    parts.append(svg.line(at(gap.mean()), top, at(gap.mean()), bottom, colour=BLUE, width=1.6))
    parts.append(svg.line(x, bottom, x + width, bottom, colour=FAINT))
    for tick in svg.ticks(low, high, 4):
        parts.append(svg.text(at(tick), bottom + 15, svg.number(tick), anchor="middle", size=11, colour=FAINT))
    parts.append(
        svg.text(x + width / 2, bottom + 32, "nats; the last bar holds all beyond", anchor="middle", colour=FAINT)
    )
    return parts


def _legend(x: float, y: float, entries: list[tuple[str, str]]) -> list[str]:
    parts = []
    for words, colour in entries:
        parts += [svg.dot(x + 4, y - 4, colour, 3.5), svg.text(x + 13, y, words, colour=FAINT)]
        x += 26 + 6.4 * len(words)
    return parts


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """From values to places."""
    span = (high - low) or 1.0
    return lambda value: start + (end - start) * (float(value) - low) / span


# ---------------------------------------------------------------- the ranks


def _ranks(trial: Trial, y: float) -> list[str]:
    """Histograms of z*'s rank, latent by latent: in the encoder's posterior, and in the weighed one."""
    p = uniformity(trial.encoder_ranks)
    shown = np.sort(np.argsort(p, kind="stable")[:MOST])
    more = "" if len(shown) == len(p) else f"; the {len(shown)} of {len(p)} latents that look least so"
    parts = [
        svg.text(EDGE, y, f"Where the true latent ranks among posterior draws: flat is right{more}", size=14, bold=True)
    ]
    parts.append(svg.text(EDGE, y + 20, "The band holds a bar of a right posterior 99 times in 100", colour=FAINT))
    left, gap = EDGE + 110, 12.0
    width = min(150.0, (WIDTH - EDGE - left - gap * (len(shown) - 1)) / len(shown))
    for row, (name, ranks) in enumerate((("encoder", trial.encoder_ranks), ("weighed by", trial.posterior_ranks))):
        top = y + 48 + row * (SMALL + 26)
        parts.append(svg.text(EDGE, top + SMALL / 2, name, bold=True))
        parts.append(svg.text(EDGE, top + SMALL / 2 + 16, ("q(z|x)", "p(x, z)")[row], colour=FAINT))
        bad = uniformity(ranks) < 1e-3
        for column, latent in enumerate(shown):
            x = left + column * (width + gap)
            words = f"z{latent}" + (f": {shape(ranks[:, latent])}" if bad[latent] else "")
            colour = (ORANGE, RED)[row] if bad[latent] else FAINT
            parts += _histogram(ranks[:, latent], x, top, width, (BLUE, GREEN)[row] if not bad[latent] else colour)
            parts.append(svg.text(x + width / 2, top + SMALL + 14, words, anchor="middle", size=11, colour=colour))
    return parts


def _histogram(ranks: Doubles, x: float, y: float, width: float, colour: str) -> list[str]:
    from scipy.stats import binom

    counts, _ = np.histogram(ranks, bins=BINS, range=(0.0, 1.0))
    low, high = (float(binom.ppf(level, len(ranks), 1 / BINS)) for level in (0.005, 0.995))
    up = _scale(0.0, max(2 * len(ranks) / BINS, high * 1.1, float(counts.max())), y + SMALL, y)
    step = width / BINS
    parts = [svg.box(x, up(high), width, up(low) - up(high), BAND)]
    for index, count in enumerate(counts):
        parts.append(svg.box(x + index * step + 1, up(count), step - 2, y + SMALL - up(count), colour))
    parts.append(svg.line(x, up(len(ranks) / BINS), x + width, up(len(ranks) / BINS), colour=FAINT, dash="3 3"))
    parts.append(svg.line(x, y + SMALL, x + width, y + SMALL, colour=RULE))
    return parts


# ---------------------------------------------------------------- the findings


def _findings(findings: Sequence[Finding], y: float) -> tuple[list[str], float]:
    parts = [svg.line(EDGE, y - 18, WIDTH - EDGE, y - 18)]
    for finding in findings:
        mark, colour = MARKS[finding.kind]
        names, words = svg.wrapped(finding.what, 36), svg.wrapped(finding.detail, 96)
        advice = svg.wrapped(f"→ {finding.remedy}", 96) if finding.remedy else []
        parts.append(svg.text(EDGE, y + 4, mark, size=14, colour=colour, bold=True))
        for index, part in enumerate(names):
            parts.append(svg.text(EDGE + 20, y + 4 + 16 * index, part, bold=True))
        for index, part in enumerate([*words, *advice]):
            ink = INK if index < len(words) else colour
            parts.append(svg.text(EDGE + 290, y + 4 + 16 * index, part, colour=ink))
        y += 16 * max(len(names), len(words) + len(advice)) + 8
    return parts, y
