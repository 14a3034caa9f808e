"""Findings: what an artifact's graphs say of held-out rows, and of the prior. Knows no picture and no page."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service import engine, families, noise, scoring
from service.artifact import Array, Artifact, Manifest
from service.engine import Engine
from service.models import DEFAULT_DRAWS, DEFAULT_SEED

Rows = NDArray[np.generic]
Doubles = NDArray[np.float64]

MOST = 500  # rows that are looked at
AT_ONCE = 50
ACTIVE = 0.1  # nats: a latent whose KL is above this on average carries something of the row
MOVES = 0.01  # of a latent's variance: what its posterior mean has over rows, where it carries something
IMAGINED = 12, 1000  # draws from the prior: of pictures and windows, and of tables
SQUARE = 4  # times as wide as high, or the reverse: what is longer is a window, unless it has colours
STEPS = np.linspace(-2.5, 2.5, 9)  # of a latent on its walk, in standard deviations of the prior
WALKS = 8  # latents that are walked along


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found on `rows`, which are held out (or golden, where there were no others).

    reconstructed: E[x|z] at the posterior's mean; imagined: rows from the prior, draws of x of tables and else E[x|z];
    elbo and latent_kl: of each row, in nats; None where the graphs don't give it; activity: the variance of each
    latent's posterior mean over rows, in the prior's, (d,); walks: by latent, E[x|z] while one latent goes from −2.5
    to 2.5 standard deviations of the prior, all others at its mean, (steps, *event).
    """

    rows: Rows
    held_out: bool
    reconstructed: Array
    imagined: Array
    elbo: Doubles
    latent_kl: Doubles | None
    activity: Doubles
    walks: dict[int, Array]

    @property
    def of_latents(self) -> Doubles:
        """What each latent carries, (d,): its KL, averaged over rows, or its activity where there is none."""
        return self.activity if self.latent_kl is None else np.asarray(self.latent_kl.mean(0), np.float64)

    @property
    def least(self) -> float:
        """What a latent carries that is active, at least."""
        return MOVES if self.latent_kl is None else ACTIVE

    @property
    def active(self) -> list[int]:
        """The latents that carry something of a row, the one that carries most first."""
        carried = self.of_latents
        return [int(latent) for latent in np.argsort(-carried, kind="stable") if carried[latent] > self.least]

    @property
    def explained(self) -> float:
        """1 − Σ(x − E[x|z])² / Σ(x − its mean)²: 1 for rows that are given back, 0 for the mean of all rows.

        Columns of a table, whose units differ, count alike; so do numbers of a picture, by how far they vary.
        """
        x, found = (np.asarray(part, np.float64).reshape(len(part), -1) for part in (self.rows, self.reconstructed))
        off, spread = ((x - found) ** 2).mean(0), x.var(0)
        if x.shape[1:] == self.rows.shape[1:]:  # a table
            off, spread = off[spread > 0] / spread[spread > 0], spread[spread > 0] / spread[spread > 0]
        return 1.0 - float(off.sum() / (spread.sum() or 1.0))


def is_picture(manifest: Manifest) -> bool:
    """Whether events are pictures: height × width, or with 1 or 3 colours before or after.

    Lines of a table aren't, nor are windows of time series, which the encoder's kind or a long side tells of.
    """
    shape = manifest.event_shape
    if _convolves_along(manifest):
        return False
    if len(shape) == 3:
        return shape[0] in (1, 3) or shape[2] in (1, 3)
    return len(shape) == 2 and min(shape) > 3 and max(shape) <= SQUARE * min(shape)


def is_window(manifest: Manifest) -> bool:
    """Whether events are windows of time series, (length,) or (channels, length)."""
    return _convolves_along(manifest) or (len(manifest.event_shape) == 2 and not is_picture(manifest))


def _convolves_along(manifest: Manifest) -> bool:
    encoder = manifest.training.config.get("encoder")
    return isinstance(encoder, dict) and str(encoder.get("kind")).endswith("1d")


def find(artifact: Artifact, rows: Rows | None) -> Findings:
    """Ask an artifact's graphs; rows None: its golden ones."""
    opened, manifest = engine.open_engine(artifact, "cpu"), artifact.manifest
    x = np.asarray(artifact.golden["encoder.x"] if rows is None else rows[:MOST])
    posterior = _by_parts(opened, "encoder", x)["mean"]
    generator = np.random.default_rng(DEFAULT_SEED)
    whole = is_picture(manifest) or is_window(manifest)
    decoded = opened.compute("decoder", {"z": _from_prior(opened, manifest, IMAGINED[not whole], generator)})
    imagined = decoded["mean"] if whole else families.draw(manifest, decoded, generator)
    elbo, latent_kl = _bounds(opened, manifest, x)
    reconstructed = opened.compute("decoder", {"z": posterior})["mean"]
    activity = posterior.astype(np.float64).var(0) / np.square(manifest.prior.moments[1])
    seen = Findings(x, rows is not None, reconstructed, imagined, elbo, latent_kl, activity, {})
    seen.walks.update({latent: _walk(opened, manifest, latent) for latent in (seen.active or [0])[:WALKS]})
    return seen


def _by_parts(opened: Engine, graph: str, x: Rows) -> dict[str, Array]:
    parts = [opened.compute(graph, {"x": np.asarray(x[i : i + AT_ONCE])}) for i in range(0, len(x), AT_ONCE)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _from_prior(opened: Engine, manifest: Manifest, count: int, generator: np.random.Generator) -> Array:
    """Latents from the prior, (count, d); by its graph, where it isn't a standard normal."""
    epsilon = generator.standard_normal((count, manifest.latent_size)).astype(np.float32)
    if (graph := manifest.graphs.get("prior")) is None:
        return epsilon
    every = {"epsilon": epsilon, "uniform": generator.random(count, dtype=np.float32)}
    return opened.compute("prior", {name: every[name] for name in graph.rows})["z"]


def _bounds(opened: Engine, manifest: Manifest, x: Rows) -> tuple[Doubles, Doubles | None]:
    """Each row's ELBO as the service gives it, and its KL latent by latent."""
    bank = noise.bank(DEFAULT_SEED, DEFAULT_DRAWS, manifest.latent_size)
    elbo, latent_kl = [], []
    for i in range(0, len(x), AT_ONCE):
        feeds = {"x": np.asarray(x[i : i + AT_ONCE]), "noise": np.asarray(bank.noise)}
        found = opened.compute("elbo", feeds)
        elbo.append(scoring.bound(found["log_likelihood"], scoring.kl(found), bank).elbo)
        latent_kl.append(opened.compute("terms", feeds).get("latent_kl"))
    known = [part for part in latent_kl if part is not None]
    return np.concatenate(elbo), np.concatenate(known).astype(np.float64) if known else None


def _walk(opened: Engine, manifest: Manifest, latent: int) -> Array:
    centre, scale = (np.broadcast_to(part, manifest.latent_size) for part in manifest.prior.moments)
    z = np.tile(centre, (len(STEPS), 1))
    z[:, latent] += STEPS * scale[latent]
    return opened.compute("decoder", {"z": z.astype(np.float32)})["mean"]
