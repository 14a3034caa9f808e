"""Pictures: the card's findings as PNG. Asks no graph anything."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from service.artifact import Array, Artifact, Manifest
from training.card import columns as charts
from training.card import windows
from training.card.findings import STEPS, Findings, is_picture, is_window

Doubles = NDArray[np.float64]
DPI = 100  # 960 wide, as the page that they are shown on
SHOWN = 12  # rows
BARS = 40  # latents, or columns, that are named one by one
BLUE, ORANGE, FAINT, RED = "#2f6fb3", "#d9772b", "#b8c2cc", "#c0392b"


def rows(artifact: Artifact, seen: Findings) -> bytes:
    """Held-out rows beside what the model makes of them, and rows from the prior."""
    manifest = artifact.manifest
    given = "held out" if seen.held_out else "golden"
    lines = [(given, seen.rows), ("reconstructed", seen.reconstructed), ("prior", seen.imagined)]
    if is_window(manifest):
        return _png(windows.rows(lines))
    if is_picture(manifest):
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
    manifest = artifact.manifest
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    whole = figure.add_gridspec(1, 2, width_ratios=(1, 1.5))
    _carried(figure.add_subplot(whole[0]), seen)
    right = figure.add_subfigure(whole[1])
    if is_window(manifest):
        windows.walks(right, seen.walks)
    elif is_picture(manifest):
        lines = [(f"z{latent}", walk) for latent, walk in seen.walks.items()]
        _pictures(right, manifest, lines)
        right.suptitle("E[x|z] as one latent goes from −2.5 to 2.5 of the prior's standard deviations", fontsize=9)
    else:
        _walks(right, manifest, seen)
    return _png(figure)


def columns(artifact: Artifact, seen: Findings) -> bytes | None:
    """Each column of a table: held-out rows beside rows that are drawn from the model; None of anything else."""
    manifest = artifact.manifest
    if is_picture(manifest) or is_window(manifest):
        return None
    kind = "held-out rows" if seen.held_out else "golden rows"
    return _png(charts.histograms(_flat(seen.rows), _flat(seen.imagined), manifest.features or (), kind))


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


def _carried(axis: Axes, seen: Findings) -> None:
    carried = seen.of_latents
    shown = np.argsort(-carried, kind="stable")[:BARS]
    colours = [BLUE if carried[latent] > seen.least else FAINT for latent in shown]
    axis.barh(np.arange(len(shown)), carried[shown], color=colours)
    axis.set_yticks(np.arange(len(shown)), [f"z{latent}" for latent in shown], fontsize=7)
    axis.invert_yaxis()
    count, exact = f"{len(seen.active)} of {len(carried)} latents", seen.latent_kl is not None
    axis.set_xlabel("KL a row, nats" if exact else "variance of its posterior mean, in the prior's")
    axis.set_title(f"{count} carry more than {seen.least:g} nats" if exact else f"{count} are active", fontsize=9)


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
