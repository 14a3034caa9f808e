"""The picture of a fit: what a person looks at before believing the figures. Knows no training loop and no artifact."""

from __future__ import annotations

from typing import Any, BinaryIO

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray
from torch import Tensor

from training.config import Run
from training.data import DataSet
from training.vae import VAE

Doubles = NDArray[np.float64]
Figures = dict[str, float]
SHOWN = 12


@torch.no_grad()
def draw(vae: VAE, run: Run, dataset: DataSet, figures: list[Figures], to: BinaryIO) -> None:
    """Held-out rows and their reconstructions, draws from the prior, and the bound's terms over epochs."""
    rows = dataset.splits["test"][:SHOWN]
    reconstructed = _means(vae, vae.posterior(torch.from_numpy(rows)).moments()[0])
    imagined = _means(vae, _imagined(vae, SHOWN, run.latent_size, torch.Generator().manual_seed(run.seed)))
    figure = Figure(figsize=(12, 8.2), layout="constrained")
    FigureCanvasAgg(figure)
    parts: Any = figure.subfigures(2, 1, height_ratios=(1.1, 1))
    above, below = parts
    figure.suptitle(f"{run.name}: {run.description}")
    lines = (("held out", rows), ("reconstructed", reconstructed), ("prior", imagined))
    if "1d" in run.encoder.kind + run.decoder.kind:
        _windows(above, lines)
    elif len(dataset.event_shape) == 2 or (len(dataset.event_shape) == 3 and dataset.event_shape[0] == 3):
        _pictures(above, dataset, lines)
    else:
        _tables(above, vae, dataset, run)
    _terms(below, figures)
    figure.savefig(to, format="png", dpi=110)


def _imagined(vae: VAE, count: int, latent_size: int, generator: torch.Generator) -> Tensor:
    """Draws from the prior."""
    noise = torch.randn((count, latent_size), generator=generator)
    return vae.prior.draws(noise, torch.rand(count, generator=generator))


def _means(vae: VAE, z: Tensor) -> Doubles:
    """E[x|z], with events in their shape."""
    mean = vae.likelihood.mean(vae.parameters_at(z))
    return np.asarray(mean.reshape(len(z), *vae.event_shape).double().numpy(), np.float64)


def _pictures(figure: SubFigure, dataset: DataSet, lines: tuple[tuple[str, NDArray[Any]], ...]) -> None:
    """One line of pictures each, on the support's own range of greys; coloured ones as they are."""
    grid = figure.subplots(len(lines), SHOWN)
    low, high = dataset.support.lowest, dataset.support.highest
    for axes, (title, images) in zip(grid, lines, strict=True):
        for axis in axes:
            axis.set_xticks([])
            axis.set_yticks([])
        for axis, image in zip(axes, images, strict=False):  # fewer, where so few are held out
            axis.imshow(image if image.ndim == 2 else _coloured(image), cmap="gray_r", vmin=low, vmax=high)
        axes[0].set_ylabel(title)


def _windows(figure: SubFigure, lines: tuple[tuple[str, NDArray[Any]], ...]) -> None:
    """One line of windows each, a curve a channel, all on the range of the held-out ones."""
    low, high = np.nanquantile(lines[0][1], (0, 1))
    grid = figure.subplots(len(lines), SHOWN, sharey=True)
    for axes, (title, windows) in zip(grid, lines, strict=True):
        for axis, window in zip(axes, windows, strict=False):  # fewer, where so few are held out
            axis.plot(np.atleast_2d(window).T, linewidth=0.7)
            axis.set(xticks=[], ylim=(low, high + (high == low)))
        axes[0].set_ylabel(title)


def _coloured(image: NDArray[Any]) -> Doubles:
    """Channels last, from 0 to 1."""
    low, high = float(image.min()), float(image.max())
    whole = (0.0, 255.0) if low >= 0 and high <= 255 else (low, high)
    return np.asarray(np.moveaxis(image, 0, -1) - whole[0], np.float64) / ((whole[1] - whole[0]) or 1.0)


def _tables(figure: SubFigure, vae: VAE, dataset: DataSet, run: Run) -> None:
    """Reconstructed against held-out values, and the ranges of prior draws beside those of held-out rows."""
    rows = dataset.splits["test"].reshape(len(dataset.splits["test"]), -1)
    fitted = dataset.splits["fit"].reshape(len(dataset.splits["fit"]), -1)
    centre, spread = fitted.mean(0), np.where(fitted.std(0) > 0, fitted.std(0), 1.0)
    x = torch.from_numpy(dataset.splits["test"])
    reconstructed = _means(vae, vae.posterior(x).moments()[0]).reshape(rows.shape)
    generator = torch.Generator().manual_seed(run.seed)
    z = _imagined(vae, 1000, run.latent_size, generator)
    imagined = vae.likelihood.sample(vae.parameters_at(z), generator).numpy()
    left, right = figure.subplots(1, 2, width_ratios=(1, 2))
    left.scatter((rows - centre) / spread, (reconstructed - centre) / spread, s=3, alpha=0.5)
    left.axline((0, 0), slope=1, color="black", linewidth=0.7)
    left.set(xlabel="held-out value (standard deviations)", ylabel="reconstructed")
    _ranges(right, (rows - centre) / spread, -0.18, "held-out rows", "C0")
    _ranges(right, (imagined - centre) / spread, 0.18, "prior draws", "C1")
    right.set(xlabel="column", ylabel="5 %, 50 %, 95 % (standard deviations)")
    right.legend()


def _ranges(axis: Axes, values: NDArray[Any], shift: float, label: str, color: str) -> None:
    """Each column's 5, 50 and 95 % points."""
    low, middle, high = np.quantile(values, (0.05, 0.5, 0.95), axis=0)
    columns = np.arange(values.shape[1]) + shift
    axis.errorbar(columns, middle, (middle - low, high - middle), fmt="o", markersize=3, color=color, label=label)


def _terms(figure: SubFigure, figures: list[Figures]) -> None:
    """The bound and its two terms, on the rows that were fitted and on held-out ones."""
    epochs = np.arange(1, len(figures) + 1)
    titles = ("ELBO (nats a row)", "E_q[log p(x|z)]", "KL(q(z|x) ‖ p(z))")
    for axis, title in zip(figure.subplots(1, 3), titles, strict=True):
        for prefix, label in (("fit_", "fit"), ("", "held out")):
            reconstruction = np.array([line[f"{prefix}log_likelihood"] for line in figures])
            kl = np.array([line[f"{prefix}kl"] for line in figures])
            values = {titles[0]: reconstruction - kl, titles[1]: reconstruction, titles[2]: kl}[title]
            axis.plot(epochs, values, label=label)
            tail = values[len(values) // 10 :]
            if prefix == "" and title != titles[2] and np.ptp(tail) > 0:
                axis.set_ylim(tail.min() - 0.1 * np.ptp(tail), tail.max() + 0.3 * np.ptp(tail))
        axis.set(title=title, xlabel="epoch")
        axis.legend()
