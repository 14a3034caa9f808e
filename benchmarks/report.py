"""The report: what was measured as Markdown, and what it says. Measures nothing."""

from __future__ import annotations

import platform
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime

from benchmarks.servers import OURS, SHARED, Kind
from service.lanes import cores

if TYPE_CHECKING:
    from benchmarks.load import Load
    from benchmarks.serving import Cell, Found

MARGIN = 130e-6  # seconds that serving may add to a lone row's graph and parsing
SHARE, TAIL = 0.9, 2.5  # of in-process rows/s in S4; of p50, p99 at 64 connections


COLUMNS = (
    *("scenario", "server", "rows/s (least–most)", "of two sessions in process", "of one"),
    *("requests/s", "p50 ms", "p99 ms", "CPU µs a row", "MiB"),
)
HOW = """\
`python -m benchmarks.serving`: {repeats} turns of {seconds:g} s for each server in each cell, interleaved; the median
is shown, with the least and the most. K = 1. Binary is raw rows in and float64s out; ours {form}. Everyone's bodies
agreed with the graph's own to 1e-6 relative before any load, and not one request failed. Memory is PSS of all of a
server's processes, after the load. wrk corrects its latencies for what a stall would have kept waiting."""


def heading(repeats: int, seconds: float, binary: str, kinds: Sequence[Kind]) -> str:
    """Where and how it was measured."""
    versions = f"Python {platform.python_version()}, onnxruntime {onnxruntime.__version__}, NumPy {np.__version__}"
    machine = f"{cpu()}, {cores()} cores for server and client together, {platform.system()}"
    form = {"oip": "binary tensors of the Open Inference Protocol, elbo alone", "npy": "npy in, JSON out"}[binary]
    packages = {kind.environment: ", ".join(kind.packages) for kind in kinds if kind.environment}
    told = {kind.name: ", ".join(f"{name}={value}" for name, value in kind.env.items()) for kind in kinds if kind.env}
    paragraphs = [
        f"{machine}; {versions}; {time.strftime('%Y-%m-%d')}.",
        HOW.format(repeats=repeats, seconds=seconds, form=form),
    ]
    if packages:
        listed = "; ".join(f"{name} ({pins})" for name, pins in packages.items())
        paragraphs.append(f"Peers' packages, besides {' and '.join(SHARED)} as ours: {listed}.")
    if told:
        paragraphs.append(f"Settings: {'; '.join(f'{name} {said}' for name, said in told.items())}.")
    return "\n\n".join(["# Serving", *(textwrap.fill(paragraph, 120) for paragraph in paragraphs), ""])


def cpu() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def tables(found: Found) -> str:
    """One model: the graph, starts, the table, a verdict for each cell, and the goals."""
    pieces = [f"## {found.name}\n", graph(found), starts(found), table(found)]
    if any(name.partition(":")[0] == OURS for name in found.starts):
        pieces.append("\n".join([*verdicts(found), "", *goals(found), ""]))
    return "\n".join(pieces)


def graph(found: Found) -> str:
    """The graph in process."""
    (one, one_batch), (two, two_batch) = found.peaks[1], found.peaks[2]
    return (
        f"In process: one row {found.graph_p50 * 1e6:.0f} µs; one session {one:,.0f} rows/s (batches of {one_batch}), "
        f"two {two:,.0f} ({two_batch}). Reading the one-row JSON body into an array: {found.parse * 1e6:.0f} µs.\n"
    )


def starts(found: Found) -> str:
    """How long servers take to start, and what they cost while nobody asks."""
    lines = ["| server | start to first answer | memory, idle | CPU, idle |", "|---|---|---|---|"]
    for name, times in found.starts.items():
        memory, busy = found.idle[name]
        lines.append(f"| {name} | {median(times):.2f} s | {memory:.0f} MiB | {busy:.0%} of a core |")
    return "\n".join([*lines, ""])


def table(found: Found) -> str:
    """Every cell and every server."""
    lines = [
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * len(COLUMNS)}",
    ]
    for cell, loads in found.loads.items():
        for name, seen in sorted(loads.items(), key=lambda pair: -rows(cell, pair[1])):
            low, high = spread(cell, seen)
            at = rows(cell, seen)
            cells = (
                f"{cell}: {cell.rows}-row {cell.form}",
                f"**{name}**" if name.partition(":")[0] == OURS else name,
                f"{at:,.0f} ({low:,.0f}–{high:,.0f})",
                f"{at / median(found.inside[cell]):.2f}",
                f"{at / found.peaks[1][0]:.2f}",
                f"{median(load.rate for load in seen):,.0f}",
                f"{median(load.p50 for load in seen) * 1e3:.2f}",
                f"{median(load.p99 for load in seen) * 1e3:.2f}",
                f"{median(load.cpu / max(1, load.requests) for load in seen) / cell.rows * 1e6:,.0f}",
                f"{found.memory[cell][name]:.0f}",
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def verdicts(found: Found) -> list[str]:
    """Ours against the best peer, a line a cell; the best of ours where there are several."""
    return [f"- {line}" for cell, loads in found.loads.items() if (line := verdict(cell, loads))]


def verdict(cell: Cell, loads: Mapping[str, Sequence[Load]]) -> str:
    """Whether ours is ahead, and whether by more than all spreads: our least turn above every peer's most."""
    mine = {name: seen for name, seen in loads.items() if name.partition(":")[0] == OURS}
    others = {name: seen for name, seen in loads.items() if name not in mine}
    if not mine or not others:
        return ""
    us, them = (max(group, key=lambda name: rows(cell, group[name])) for group in (mine, others))
    if not rows(cell, mine[us]) and not rows(cell, others[them]):
        return f"{cell}: nobody answered in time"
    ratio = rows(cell, mine[us]) / max(rows(cell, others[them]), 1e-9)
    (low, high), most = spread(cell, mine[us]), max(spread(cell, seen)[1] for seen in others.values())
    least = spread(cell, others[them])[0]
    clear = low > most if ratio > 1 else high < least
    said = f"{'ahead' if ratio > 1 else 'behind'}, {'beyond' if clear else 'within'} the spread"
    return (
        f"{cell}: {us} {rows(cell, mine[us]):,.0f} rows/s, {them} {rows(cell, others[them]):,.0f}: ×{ratio:.2f}, {said}"
    )


def goals(found: Found) -> list[str]:
    """What we want of ours, and what there is."""
    lines = []
    for cell, loads in found.loads.items():
        mine = [seen for name, seen in loads.items() if name.partition(":")[0] == OURS]
        best = max(mine, key=lambda seen: rows(cell, seen))
        p50, p99 = median(load.p50 for load in best), median(load.p99 for load in best)
        if cell.scenario == "S4":
            share = rows(cell, best) / median(found.inside[cell])
            lines.append(goal(share >= SHARE, f"{cell}: {share:.0%} of in-process rows/s, {SHARE:.0%} wanted"))
        if cell.connections == 1:
            alone = found.graph_p50 + (found.parse if cell.form == "json" else 0.0)
            text = f"p50 {p50 * 1e6:.0f} µs is graph and parsing + {(p50 - alone) * 1e6:.0f} µs"
            lines.append(goal(p50 - alone <= MARGIN, f"{cell}: {text}, {MARGIN * 1e6:.0f} wanted"))
        if cell.connections == 64:
            lines.append(goal(p99 <= TAIL * p50, f"{cell}: p99 is {p99 / p50:.2f} × p50, {TAIL} wanted"))
    return lines


def goal(met: bool, text: str) -> str:
    """A goal's line."""
    return f"- {'met' if met else 'not met'}: {text}"


def three(times: tuple[Sequence[float], Sequence[float]]) -> str:
    """How long a start with three models takes."""
    scored, ready = map(median, times)
    text = f"a score of each after {scored:.2f} s, /readyz after {ready:.2f} s"
    return "\n".join(("## Start with three models\n", goal(scored <= 0.8, f"{text}, 0.8 wanted"), ""))


def rows(cell: Cell, seen: Sequence[Load]) -> float:
    """The median rows a second."""
    return cell.rows * median(load.rate for load in seen)


def spread(cell: Cell, seen: Sequence[Load]) -> tuple[float, float]:
    """The least and the most rows a second."""
    rates = [cell.rows * load.rate for load in seen]
    return min(rates), max(rates)
