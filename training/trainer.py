"""The trainer: Lightning's, as a run asks for it, with two checkpoints and a line that moves. Knows no model.

Of several processes the first leads: it alone writes files and talks.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from training import files
from training.config import Run, Unusable

HELD_OUT = "held_out_bound"


class Whole(TorchCheckpointIO):
    """Checkpoints that are there whole or not at all."""

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Any | None = None,  # noqa: ARG002  # Lightning's signature
    ) -> None:
        """Written beside its place, then given its name."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)  # as Lightning's own does
        with files.whole(Path(path)) as file:
            torch.save(checkpoint, file)


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


def build(run: Run, folder: Path, best: str, *callbacks: Callback) -> lightning.Trainer:
    """Lightning without its talk: early stopping, `best` and the last checkpoint in a folder, the caller's callbacks.

    Unusable where the devices, the strategy and the precision aren't to be had here or don't go together.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    stop = EarlyStopping(HELD_OUT, mode="max", patience=run.optimiser.patience, check_on_train_epoch_end=True)
    keep = ModelCheckpoint(
        folder,
        Path(best).stem,
        monitor=HELD_OUT,
        mode="max",
        save_last=True,
        enable_version_counter=False,
        save_on_train_epoch_end=True,
    )
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    where = _where(run)
    with _plainly():
        return lightning.Trainer(
            **where,
            max_epochs=run.optimiser.epochs,
            callbacks=[*callbacks, stop, keep],
            num_sanity_val_steps=0,
            reload_dataloaders_every_n_epochs=1,
            use_distributed_sampler=False,  # batches know which process takes what
            default_root_dir=folder,
            plugins=[Whole()],
            **quiet,
        )


def _where(run: Run) -> dict[str, Any]:
    """Devices, strategy and precision, with the accelerator by its name."""
    wanted = run.trainer.model_dump()
    if wanted["accelerator"] == "auto":
        wanted["accelerator"] = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted["accelerator"] == "cpu" and wanted["precision"] == "16-mixed":
        raise Unusable("trainer: 16-mixed needs a GPU; a processor has bf16-mixed")  # Lightning takes it silently
    if wanted["accelerator"] == "cpu" and (isinstance(wanted["devices"], list) or wanted["devices"] == -1):
        raise Unusable("trainer: on a processor, devices is how many processes there are, from 1 on")
    if "spawn" in wanted["strategy"]:
        raise Unusable(f"trainer: {wanted['strategy']} takes no fit from one process to another; use ddp or ddp_fork")
    return wanted


@contextlib.contextmanager
def _plainly() -> Iterator[None]:
    """What Lightning refuses, in a line."""
    try:
        yield
    except (MisconfigurationException, ImportError, ValueError, TypeError) as error:
        raise Unusable(f"trainer: {' '.join(str(error).split())}") from error
