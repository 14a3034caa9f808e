"""Fitting: a run → a folder with its weights, figures and picture. Knows no graph and no artifact.

runs/<name>/
    config.yaml      the run, every default spelt out
    best.ckpt        at the highest held-out bound; what is exported
    last.ckpt        after the last whole epoch; where `--resume` goes on
    metrics.json     the terms of the bound over epochs
    picture.png      what to look at before believing any of it

Batches and noise are functions of (seed, epoch, step), so a run that was killed and resumed ends where an
uninterrupted one does; and of several processes each takes its part of them, so that together they do what one would.
"""

from __future__ import annotations

import json
import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from service import noise
from training import config, data, files, missing, objective, picture, trainer, vae
from training.batches import Batch, Batches, Tally
from training.config import Run, Unusable
from training.data import DataSet
from training.trainer import HELD_OUT
from training.vae import VAE

CONFIG, BEST, LAST, METRICS, PICTURE = "config.yaml", "best.ckpt", "last.ckpt", "metrics.json", "picture.png"
HELD_OUT_DRAWS = 4  # of one fixed noise bank: enough to rank epochs, cheap enough for every one of them

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Fitted:
    """A fitted VAE with what it came from; figures has one entry an epoch up to the one that was kept."""

    run: Run
    data: DataSet
    vae: VAE
    figures: list[Figures]


class Module(lightning.LightningModule):
    """A VAE in training."""

    bank: Tensor

    def __init__(self, run: Run, dataset: DataSet) -> None:
        super().__init__()
        self.run, self.dataset = run, dataset
        self.vae = vae.build(run, dataset)
        self.figures: list[Figures] = []
        self.fitted, self.held_out = Tally(), Tally()
        draws = max(HELD_OUT_DRAWS, run.objective.draws)
        self.register_buffer("bank", torch.tensor(noise.bank(run.seed, draws, run.latent_size).noise))

    def train_dataloader(self) -> Batches:
        """The fitted rows in an order, and with values taken out, that the seed and the epoch alone decide."""
        generator = np.random.default_rng([self.run.seed, self.current_epoch])
        order = generator.permutation(len(self.dataset.splits["fit"]))
        rows = self.dataset.drawn(generator)[order]
        if self.run.missing:
            rows = missing.punch(rows, self.run.missing, generator)
        return Batches(rows, self.run.optimiser.batch_size)

    def val_dataloader(self) -> Batches:
        """The rows that decide when to stop; with values missing as in training, the same ones in every epoch."""
        rows = self.dataset.splits["validation"]
        if self.run.missing:
            rows = missing.punch(rows, self.run.missing, np.random.default_rng(self.run.seed))
        return Batches(rows, 250)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """What is maximised, with its sign turned; by the objective's draws of each row, in nats."""
        wanted = self.run.objective
        generator = torch.Generator().manual_seed(self.run.seed * 1_000_003 + self.global_step)
        epsilon = torch.randn((batch.whole, wanted.draws, self.run.latent_size), generator=generator)
        terms = objective.measured(self.vae, batch.x, epsilon.to(self.device)[batch.places], wanted)
        self.fitted.add(terms, batch)
        loss = -batch.weight * objective.climbed(terms, self.current_epoch, wanted)
        if not torch.isfinite(loss):
            raise Unusable(f"the objective is not a finite number in epoch {self.current_epoch}; lower optimiser.lr")
        return loss

    def validation_step(self, batch: Batch, _: int) -> None:
        """The bound and its terms on held-out rows, with β = 1 whatever training weighs them with."""
        self.held_out.add(objective.measured(self.vae, batch.x, self.bank, self.run.objective), batch)

    def on_validation_epoch_end(self) -> None:
        """What early stopping looks at."""
        self.log(HELD_OUT, self.held_out.means(self.device)["bound"])

    def on_train_epoch_end(self) -> None:
        """One line in the history."""
        fitted = {f"fit_{name}": value for name, value in self.fitted.take(self.device).items()}
        self.figures.append({**self.held_out.take(self.device), **fitted})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, with decoupled weight decay."""
        wanted = self.run.optimiser
        return torch.optim.AdamW(self.parameters(), lr=wanted.lr, weight_decay=wanted.weight_decay, fused=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Plain values only, so that the file loads without unpickling code."""
        checkpoint["run"] = self.run.plain()
        checkpoint["splits"] = {name: part.sha256 for name, part in self.dataset.digests.items()}
        checkpoint["figures"] = [dict(line) for line in self.figures]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The history so far."""
        self.figures = list(checkpoint["figures"])


def fit(run: Run, folder: Path, *, resume: bool = False, console: Console | None = None) -> Fitted:
    """Fit a run into its folder; with `resume`, from the last whole epoch. Unusable where that can't be.

    Where a strategy has several processes each of them runs the program that called this, and the first one leads.
    """
    module = Module(run, data.of(run))
    bar = trainer.Bar(run, console or Console(quiet=True))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
        ready = trainer.build(run, folder, BEST, bar)
        bar.progress.disable = not ready.is_global_zero
        last = _begin(run, folder, resume, ready.is_global_zero)
        with bar.progress:
            ready.fit(module, ckpt_path=last, weights_only=True)
    fitted = load(folder)
    if ready.is_global_zero:
        for name in (BEST, LAST):
            files.beside(folder / name).unlink(missing_ok=True)  # of a process that was killed
        figures = _read(folder / LAST)["figures"]
        files.write(folder / METRICS, json.dumps(figures, indent=1) + "\n")
        with files.whole(folder / PICTURE) as file:
            picture.draw(fitted.vae, fitted.run, fitted.data.without_holes(), figures, file)
    return fitted


def load(folder: Path) -> Fitted:
    """The fitted model in a run's folder, on the data that it was fitted to."""
    checkpoint = _read(folder / BEST)
    run = config.check(checkpoint["run"], str(folder / BEST))
    dataset = data.of(run)
    if {name: part.sha256 for name, part in dataset.digests.items()} != checkpoint["splits"]:
        raise Unusable(f"{folder}: was fitted to other rows than {run.data.name} now gives; fit again")
    fresh = vae.build(run, dataset)
    weights = {name.removeprefix("vae."): value for name, value in checkpoint["state_dict"].items() if name != "bank"}
    fresh.load_state_dict(weights)
    return Fitted(run, dataset, fresh.eval().requires_grad_(False), checkpoint["figures"])


def held_out(figures: Figures) -> float:
    """The held-out bound of an epoch, of the kind that was maximised."""
    return figures["bound"]


def _begin(run: Run, folder: Path, resume: bool, leads: bool) -> Path | None:
    """The checkpoint to go on from, or None for a folder that the process that leads has cleared of an earlier run."""
    last = folder / LAST
    if resume:
        if not last.exists():
            raise Unusable(f"{last}: there is nothing to resume; fit without --resume")
        if config.check(_read(last)["run"], str(last)) != run:
            raise Unusable(f"{last}: was made by another config than this one; fit without --resume")
        return last
    if leads:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (BEST, LAST, METRICS, PICTURE):
            files.remove(folder / name)
        files.write(folder / CONFIG, config.write(run))
    return None


def _read(path: Path) -> dict[str, Any]:
    """A checkpoint's values; only plain ones and tensors are ever loaded."""
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except OSError as error:
        raise Unusable(f"{path}: {error.strerror}") from error
    except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise Unusable(f"{path}: not a checkpoint of this trainer") from error
