"""Windows: of time series, drawn as curves, one a channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure, SubFigure

from service.artifact import Array
from training.card.findings import STEPS, Rows

SHOWN, CHANNELS, LATENTS = 6, 3, 4  # windows side by side; curves in one; latents that are walked along


def rows(lines: Sequence[tuple[str, Rows]]) -> Figure:
    """Lines of windows, all on the range of the first."""
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    low, high = np.nanquantile(np.asarray(lines[0][1][:SHOWN], np.float64), (0.0, 1.0))
    grid = figure.subplots(len(lines), SHOWN, sharex=True, sharey=True, squeeze=False)
    for axes, (title, windows) in zip(grid, lines, strict=True):
        for axis, window in zip(axes, windows, strict=False):  # fewer, where so few are held out
            axis.plot(np.atleast_2d(window).T[:, :CHANNELS], linewidth=0.8)
        axes[0].set_ylabel(title, fontsize=8)
    grid[0, 0].set_ylim(low, high if high > low else low + 1.0)
    for axis in grid.flat:
        axis.tick_params(labelsize=7)
    return figure


def walks(figure: Figure | SubFigure, walked: Mapping[int, Array]) -> None:
    """What a window becomes as one latent goes its way: a line a latent, a column a channel, a colour a step."""
    latents = list(walked)[:LATENTS]
    channels = min(CHANNELS, len(np.atleast_2d(walked[latents[0]][0])))
    grid = figure.subplots(len(latents), channels, sharex=True, sharey=True, squeeze=False)
    colours = colormaps["coolwarm"](np.linspace(0.0, 1.0, len(STEPS)))
    for axes, latent in zip(grid, latents, strict=True):
        for channel, axis in enumerate(axes):
            for window, colour in zip(walked[latent], colours, strict=True):
                axis.plot(np.atleast_2d(window)[channel], color=colour, linewidth=0.8)
            axis.tick_params(labelsize=7)
        axes[0].set_ylabel(f"z{latent}", fontsize=8)
    if channels > 1:
        for channel, axis in enumerate(grid[0]):
            axis.set_title(f"channel {channel}", fontsize=8)
    figure.suptitle("E[x|z] as one latent goes from −2.5 (blue) to 2.5 (red) of the prior's deviations", fontsize=9)
