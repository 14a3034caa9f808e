"""Fitting: a run → a folder with its weights, figures and picture. Knows no graph and no artifact.

runs/<name>/
    config.yaml      the run, every default spelt out
    best.ckpt        at the highest held-out bound; what is exported
    last.ckpt        after the last whole epoch; where `--resume` goes on
    metrics.json     the terms of the bound over epochs
    picture.png      what to look at before believing any of it

Batches and noise are functions of (seed, epoch, step), so a run that was killed and resumed ends where an
uninterrupted one does.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from service import noise
from training import config, data, missing, objective, picture, vae
from training.config import Run, Unusable
from training.data import DataSet, Rows
from training.vae import VAE

CONFIG, BEST, LAST, METRICS, PICTURE = "config.yaml", "best.ckpt", "last.ckpt", "metrics.json", "picture.png"
HELD_OUT = "held_out_bound"
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

    def training_step(self, batch: tuple[Tensor], _: int) -> Tensor:
        """What is maximised, with its sign turned; by the objective's draws of each row, in nats."""
        (x,) = batch
        wanted = self.run.objective
        generator = torch.Generator().manual_seed(self.run.seed * 1_000_003 + self.global_step)
        epsilon = torch.randn((len(x), wanted.draws, self.run.latent_size), generator=generator).to(self.device)
        terms = objective.measured(self.vae, x, epsilon, wanted)
        self.fitted.add(terms)
        loss = -objective.climbed(terms, self.current_epoch, wanted)
        if not torch.isfinite(loss):
            raise Unusable(f"the objective is not a finite number in epoch {self.current_epoch}; lower optimiser.lr")
        return loss

    def validation_step(self, batch: tuple[Tensor], _: int) -> None:
        """The bound and its terms on held-out rows, with β = 1 whatever training weighs them with."""
        self.held_out.add(objective.measured(self.vae, batch[0], self.bank, self.run.objective))

    def on_validation_epoch_end(self) -> None:
        """What early stopping looks at."""
        self.log(HELD_OUT, self.held_out.means()["bound"])

    def on_train_epoch_end(self) -> None:
        """One line in the history."""
        fitted = {f"fit_{name}": value for name, value in self.fitted.take().items()}
        self.figures.append({**self.held_out.take(), **fitted})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, with decoupled weight decay."""
        wanted = self.run.optimiser
        return torch.optim.AdamW(self.parameters(), lr=wanted.lr, weight_decay=wanted.weight_decay)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Plain values only, so that the file loads without unpickling code."""
        checkpoint["run"] = self.run.plain()
        checkpoint["splits"] = {name: part.sha256 for name, part in self.dataset.digests.items()}
        checkpoint["figures"] = [dict(line) for line in self.figures]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The history so far."""
        self.figures = list(checkpoint["figures"])


class Whole(TorchCheckpointIO):
    """Checkpoints that are there whole or not at all, whenever the process is killed."""

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Any | None = None,  # noqa: ARG002  # Lightning's signature
    ) -> None:
        """Written beside its place and put on the disk, then given its name in one step."""
        beside = Path(path).with_name(f".{Path(path).name}.writing")
        with beside.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)


class Batches:
    """Rows cut into batches at once: a data loader takes them one by one, which costs as much as the arithmetic."""

    def __init__(self, rows: Rows, size: int) -> None:
        self.parts: tuple[Tensor, ...] = torch.split(torch.from_numpy(rows), size)

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[tuple[Tensor]]:
        return ((part,) for part in self.parts)


class Tally:
    """Means over rows that come a batch at a time."""

    def __init__(self) -> None:
        self.sums, self.rows = np.zeros(3), 0

    def add(self, terms: objective.Terms) -> None:
        """Count a batch."""
        sums = torch.stack([each.detach().sum() for each in (terms.log_likelihood, terms.kl, terms.bound)])
        self.sums, self.rows = self.sums + sums.cpu().numpy(), self.rows + len(terms.kl)

    def means(self) -> Figures:
        """The means so far, nats a row."""
        return dict(zip(("log_likelihood", "kl", "bound"), (self.sums / self.rows).tolist(), strict=True))

    def take(self) -> Figures:
        """The means so far, and begin anew."""
        means = self.means()
        self.__init__()  # type: ignore[misc]  # final, and without arguments
        return means


class Bar(Callback):
    """A line that moves: the epoch, the held-out bound and its terms."""

    def __init__(self, run: Run, console: Console) -> None:
        text = TextColumn("{task.description}")
        self.progress = Progress(text, BarColumn(), TimeRemainingColumn(), console=console)
        self.task = self.progress.add_task(run.name, total=run.optimiser.epochs)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Move on."""
        bound = float(trainer.callback_metrics[HELD_OUT])
        epoch = pl_module.current_epoch + 1
        text = f"{self.progress.tasks[0].description.split(' ')[0]} epoch {epoch}: held-out bound {bound:.2f} nats"
        self.progress.update(self.task, description=text, completed=epoch)

    def on_exception(
        self,
        trainer: lightning.Trainer,  # noqa: ARG002  # Lightning's signature
        pl_module: lightning.LightningModule,
        exception: BaseException,
    ) -> None:
        """Say how to go on after Ctrl-C; Lightning then ends the process with status 1."""
        if isinstance(exception, KeyboardInterrupt):
            self.progress.console.print(f"Stopped in epoch {pl_module.current_epoch + 1}; go on with --resume")


def fit(run: Run, folder: Path, *, resume: bool = False, console: Console | None = None) -> Fitted:
    """Fit a run into its folder; with `resume`, from the last whole epoch. Unusable where that can't be."""
    module = Module(run, data.of(run))
    last = _begin(run, folder, resume)
    bar = Bar(run, console or Console(quiet=True))
    trainer = _trainer(run, folder, bar)
    with warnings.catch_warnings(), bar.progress:
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
        trainer.fit(module, ckpt_path=last, weights_only=True)
    fitted = load(folder)
    (folder / METRICS).write_text(json.dumps(module.figures, indent=1) + "\n")
    picture.draw(fitted.vae, fitted.run, fitted.data.without_holes(), module.figures, folder / PICTURE)
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


def _begin(run: Run, folder: Path, resume: bool) -> Path | None:
    """The checkpoint to go on from, or None for a folder cleared of an earlier run."""
    last = folder / LAST
    if resume:
        if not last.exists():
            raise Unusable(f"{last}: there is nothing to resume; fit without --resume")
        if _read(last)["run"] != run.plain():
            raise Unusable(f"{last}: was made by another config than this one; fit without --resume")
        return last
    folder.mkdir(parents=True, exist_ok=True)
    for name in (BEST, LAST, METRICS, PICTURE):
        (folder / name).unlink(missing_ok=True)
    (folder / CONFIG).write_text(config.write(run), encoding="utf-8")
    return None


def _trainer(run: Run, folder: Path, *callbacks: Callback) -> lightning.Trainer:
    """Lightning without its talk: early stopping, two checkpoints, and the caller's callbacks."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    stop = EarlyStopping(HELD_OUT, mode="max", patience=run.optimiser.patience, check_on_train_epoch_end=True)
    keep = ModelCheckpoint(
        folder,
        Path(BEST).stem,
        monitor=HELD_OUT,
        mode="max",
        save_last=True,
        enable_version_counter=False,
        save_on_train_epoch_end=True,
    )
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    return lightning.Trainer(
        accelerator="cuda" if torch.cuda.is_available() else "cpu",
        devices=1,
        max_epochs=run.optimiser.epochs,
        callbacks=[*callbacks, stop, keep],
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        default_root_dir=folder,
        plugins=[Whole()],
        **quiet,
    )


def _read(path: Path) -> dict[str, Any]:
    """A checkpoint's values; only plain ones and tensors are ever loaded."""
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except OSError as error:
        raise Unusable(f"{path}: {error.strerror}") from error
    except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise Unusable(f"{path}: not a checkpoint of this trainer") from error
