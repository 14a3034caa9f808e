"""Pictures: the card's findings as PNG. Asks no graph anything."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from service.artifact import Array, Artifact, Manifest
from training.card.findings import ACTIVE, STEPS, Findings, is_picture

Doubles = NDArray[np.float64]
DPI = 84
SHOWN = 12  # rows
BARS = 40  # latents, or columns, that are named one by one
BLUE, ORANGE, FAINT, RED = "#2f6fb3", "#d9772b", "#b8c2cc", "#c0392b"


def rows(artifact: Artifact, seen: Findings) -> bytes:
    """Held-out rows beside what the model makes of them, and rows from the prior."""
    manifest = artifact.manifest
    if is_picture(manifest):
        given = "held out" if seen.held_out else "golden"
        lines = [(given, seen.rows), ("reconstructed", seen.reconstructed), ("prior", seen.imagined)]
        figure = Figure(figsize=(9.6, 2.75), layout="constrained")
        _pictures(figure, manifest, [(title, images[:SHOWN]) for title, images in lines])
        return _png(figure)
    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 2.2))
    x, centre, spread = _standardised(seen)
    left.scatter(x, (_flat(seen.reconstructed) - centre) / spread, s=4, alpha=0.5, color=BLUE, linewidths=0)
    left.axline((0, 0), slope=1, color="black", linewidth=0.7)
    left.set(xlabel="held-out value", ylabel="reconstructed", title="in standard deviations")
    _ranges(right, x, -0.18, "held-out rows", BLUE)
    _ranges(right, (_flat(seen.imagined) - centre) / spread, 0.18, "drawn from the model", ORANGE)
    right.set(ylabel="5 %, 50 % and 95 % points")
    _name_columns(right, manifest)
    right.legend(frameon=False, fontsize=8, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
    return _png(figure)


def latents(artifact: Artifact, seen: Findings) -> bytes:
    """How much each latent carries, and what changes along those that carry most."""
    manifest, kl = artifact.manifest, seen.of_latents
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    parts: Any = figure.subfigures(1, 2, width_ratios=(1, 1.5)) if kl is not None else (None, figure)
    left, right = parts
    figure.set_layout_engine("constrained", w_pad=0.1)  # or names of latents lose their first letter
    if kl is not None:
        _carried(left, kl)
    if is_picture(manifest):
        lines = [(f"z{latent}", walk) for latent, walk in seen.walks.items()]
        _pictures(right, manifest, lines)
        right.suptitle("E[x|z] as one latent goes from −2.5 to 2.5 of the prior's standard deviations", fontsize=9)
    else:
        _walks(right, manifest, seen)
    return _png(figure)


def scores(artifact: Artifact, seen: Findings) -> bytes:
    """Where the scores of held-out rows lie, and those of the calibration if there is one."""
    figure = Figure(figsize=(9.6, 2.9), layout="constrained")
    axis = figure.subplots()
    facts, arrays = artifact.manifest.calibration, artifact.calibration
    reference = np.asarray(arrays["scores"]) if arrays else None
    every = seen.elbo if reference is None else np.concatenate([seen.elbo, reference])
    low, high = np.quantile(every, (0.002, 1.0))
    edges = np.linspace(low, high + 1e-9 + 1e-6 * abs(high), 41).tolist()
    kind = "test rows" if seen.held_out else "golden rows"
    if reference is not None and facts is not None:
        axis.hist(np.maximum(reference, low), edges, density=True, color=FAINT, label=f"{facts.n} calibration rows")
        _mark_alpha(axis, reference, facts.chosen)
    axis.hist(
        np.maximum(seen.elbo, low), edges, density=True, histtype="step", color=BLUE, label=f"{len(seen.elbo)} {kind}"
    )
    axis.set(xlabel="ELBO, nats a row; the first bar holds all below", ylabel="density", yticks=[])
    axis.legend(frameon=False, fontsize=8, loc="upper left")
    return _png(figure)


def _mark_alpha(axis: Axes, reference: Doubles, chosen: str, alpha: float = 0.05) -> None:
    """Where p_value ≤ α begins, for the score that is drawn."""
    place = int(np.floor(alpha * (len(reference) + 1)))
    if place < 1:
        return
    at = np.sort(reference)[place - 1]
    label = f"p ≤ {alpha:g} from here down" + ("" if chosen == "elbo" else f" (anomalies are told by {chosen})")
    axis.axvline(float(at), color=RED, linewidth=1, label=label)


def _carried(figure: SubFigure, kl: Doubles) -> None:
    axis = figure.subplots()
    shown = np.argsort(-kl, kind="stable")[:BARS]
    axis.barh(np.arange(len(shown)), kl[shown], color=[BLUE if kl[latent] > ACTIVE else FAINT for latent in shown])
    axis.set_yticks(np.arange(len(shown)), [f"z{latent}" for latent in shown], fontsize=7)
    axis.invert_yaxis()
    axis.set_xlabel("KL a row, nats")
    axis.set_title(f"{int((kl > ACTIVE).sum())} of {len(kl)} latents carry more than {ACTIVE:g} nats", fontsize=9)


def _walks(figure: Figure | SubFigure, manifest: Manifest, seen: Findings) -> None:
    """Of a table: how far every column moves, in its standard deviations, at each step of a latent."""
    *_, spread = _standardised(seen)
    axes = np.atleast_1d(figure.subplots(min(4, len(seen.walks)), 1, sharex=True))
    for axis, (latent, walk) in zip(axes, seen.walks.items(), strict=False):
        moved = (_flat(walk) - _flat(walk)[len(STEPS) // 2]) / spread
        drawn = axis.imshow(moved, aspect="auto", cmap="RdBu_r", vmin=-3, vmax=3, origin="lower")
        axis.set_yticks([0, len(STEPS) - 1], [f"{STEPS[0]:g}", f"{STEPS[-1]:g}"], fontsize=7)
        axis.set_ylabel(f"z{latent}", fontsize=8)
    _name_columns(axes[-1], manifest)
    figure.colorbar(drawn, ax=list(axes), label="E[x|z] moves, standard deviations", shrink=0.8)


def _pictures(figure: Figure | SubFigure, manifest: Manifest, lines: list[tuple[str, Array]]) -> None:
    """Lines of pictures as one, on the support's range of greys where it has one."""
    low, high = manifest.support.bounds
    every = np.concatenate([_flat(images) for _, images in lines])
    low, high = (low if np.isfinite(low) else np.nanmin(every)), (high if np.isfinite(high) else np.nanmax(every))
    shades = [[np.clip((_upright(image) - low) / ((high - low) or 1.0), 0, 1) for image in own] for _, own in lines]
    height = len(shades[0][0])
    gap = max(1, height // 14)
    axis = figure.subplots()
    axis.set_frame_on(False)
    axis.imshow(_mosaic(shades, gap), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([height / 2 + line * (height + gap) for line in range(len(lines))], [title for title, _ in lines])
    axis.tick_params(length=0, labelsize=8)


def _mosaic(lines: list[list[Doubles]], gap: int) -> Doubles:
    """Pictures side by side, line below line; what lies between is white in grey, as in colour."""
    height, width = lines[0][0].shape[:2]
    colours = lines[0][0].shape[2:]
    across = max(map(len, lines))
    ground = 1.0 if colours else 0.0  # greys are drawn with 0 as white
    every = np.full((len(lines) * (height + gap) - gap, across * (width + gap) - gap, *colours), ground)
    for row, line in enumerate(lines):
        for column, image in enumerate(line):
            top, left = row * (height + gap), column * (width + gap)
            every[top : top + height, left : left + width] = np.nan_to_num(image, nan=ground)
    return every


def _upright(image: Array) -> Doubles:
    """A picture as it is drawn: height × width, with three colours last if it has them."""
    if image.ndim == 3 and image.shape[0] in (1, 3) and image.shape[2] not in (1, 3):
        image = np.moveaxis(image, 0, -1)
    return np.asarray(image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image, np.float64)


def _flat(values: Array) -> Doubles:
    return np.asarray(values, np.float64).reshape(len(values), -1)


def _standardised(seen: Findings) -> tuple[Doubles, Doubles, Doubles]:
    """The rows in standard deviations about their mean, and both, column by column; missing values are left out."""
    x = _flat(seen.rows)
    there = np.isfinite(x).any(0)
    centre, spread = np.zeros(x.shape[1]), np.ones(x.shape[1])
    centre[there], spread[there] = np.nanmean(x[:, there], 0), np.nanstd(x[:, there], 0)
    spread = np.where(spread > 0, spread, 1.0)
    return (x - centre) / spread, centre, spread


def _ranges(axis: Axes, values: Doubles, shift: float, label: str, color: str) -> None:
    """Each column's 5, 50 and 95 % points."""
    there = np.flatnonzero(np.isfinite(values).any(0))
    low, middle, high = np.nanquantile(values[:, there], (0.05, 0.5, 0.95), axis=0)
    size = 3.0 if len(there) <= BARS else 1.5
    axis.errorbar(
        there + shift, middle, (middle - low, high - middle), fmt="o", markersize=size, color=color, label=label
    )


def _name_columns(axis: Axes, manifest: Manifest) -> None:
    if manifest.features and len(manifest.features) <= BARS:
        names = [feature.name[:28] for feature in manifest.features]
        axis.set_xticks(np.arange(len(names)), names, rotation=60, ha="right", rotation_mode="anchor", fontsize=6)
    else:
        axis.set_xlabel("column")


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DPI, metadata={"Software": None})
    return stream.getvalue()
