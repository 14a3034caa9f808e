"""How long an epoch of training takes, ours beside pythae's loop: the same networks, rows, batches and optimiser.

    python -m benchmarks.training --repeats 3 --epochs 6

784-200-200-50 and back, ReLU, Bernoulli, Adam, 100 rows a batch, one thread, on half of 5,000 digits in black and
white, with the same rows held out. The two take turns. An epoch is what passes between the beginnings of two, held-out
rows and checkpoints included as each loop has them: ours looks at them with four draws a row, pythae's with one; ours
keeps weights on disk, pythae's in memory. The first epoch of each turn isn't counted.
"""  # fmt: skip

from __future__ import annotations

import argparse
import itertools
import logging
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from benchmarks.report import cpu
from training import config, data, fit, trainer
from training.data import Rows

SIZES, LATENTS, BATCH = [200, 200], 50, 100


def run(rows: Path, epochs: int) -> config.Run:
    """The run of ours."""
    plain: dict[str, Any] = {
        "name": "timed",
        "data": {"name": "file", "path": str(rows), "source": "5,000 digits in black and white", "highest": 1},
        "encoder": {"kind": "mlp", "sizes": SIZES},
        "decoder": {"kind": "mlp", "sizes": SIZES},
        "latent_size": LATENTS,
        "likelihood": {"family": "bernoulli"},
        "optimiser": {"batch_size": BATCH, "epochs": epochs, "patience": epochs},
    }
    return config.check(plain, "benchmark")


class Clock(Callback):
    """When each epoch of Lightning's ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_epoch_start(self, *_: object) -> None:
        """The end of the one before."""
        self.ends.append(time.perf_counter())


def between(ends: list[float]) -> list[float]:
    """Seconds of each epoch but the first."""
    return [later - earlier for earlier, later in itertools.pairwise(ends)][1:]


def ours(wanted: config.Run, folder: Path) -> list[float]:
    """Seconds of each epoch but the first, in our loop."""
    clock, module = Clock(), fit.Module(wanted, data.of(wanted))
    trainer.build(wanted, folder, fit.BEST, clock).fit(module)
    return between(clock.ends)


def theirs(splits: dict[str, Rows], folder: Path, epochs: int) -> list[float]:
    """The same in pythae's."""
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainingCallback

    class Encoder(BaseEncoder):  # type: ignore[misc]  # pythae has no types
        def __init__(self) -> None:
            super().__init__()
            self.body = dense([784, *SIZES, 2 * LATENTS])

        def forward(self, x: torch.Tensor) -> Any:
            mean, log_variance = self.body(x).chunk(2, -1)
            return ModelOutput(embedding=mean, log_covariance=log_variance)

    class Decoder(BaseDecoder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(*dense([LATENTS, *SIZES, 784]), nn.Sigmoid())

        def forward(self, z: torch.Tensor) -> Any:
            return ModelOutput(reconstruction=self.body(z))

    ends: list[float] = []

    class Ends(TrainingCallback):  # type: ignore[misc]
        def on_epoch_begin(self, *_: object, **__: object) -> None:
            ends.append(time.perf_counter())

    torch.manual_seed(0)
    model = VAE(VAEConfig(input_dim=(784,), latent_dim=LATENTS, reconstruction_loss="bce"), Encoder(), Decoder())
    both = [
        BaseDataset(rows, torch.ones(len(rows)))
        for rows in (torch.from_numpy(splits[name].reshape(-1, 784)).float() for name in ("fit", "validation"))
    ]
    settings = BaseTrainerConfig(
        output_dir=str(folder),
        num_epochs=epochs,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=250,
        learning_rate=1e-3,
        no_cuda=True,
    )
    BaseTrainer(model, *both, training_config=settings, callbacks=[Ends()]).train()
    return between(ends)


def dense(sizes: list[int]) -> nn.Sequential:
    """Our own dense layers."""
    from training.networks import _dense

    return _dense(sizes)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=6)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    seconds: dict[str, list[float]] = {"ours": [], "pythae": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        digits = np.concatenate(list(data.load(config.Mnist(name="mnist")).splits.values()))
        np.save(folder / "rows.npy", (digits.reshape(-1, 784) > 127).astype(np.uint8))
        wanted = run(folder / "rows.npy", asked.epochs)
        splits = {str(key): rows for key, rows in data.of(wanted).splits.items()}
        for _ in range(asked.repeats):
            seconds["ours"] += ours(wanted, folder / "ours")
            seconds["pythae"] += theirs(splits, folder / "pythae", asked.epochs)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning", "pythae", "numpy"))
    print(f"{cpu()}, one thread; {versions}; {time.strftime('%Y-%m-%d')}.")
    print(f"{len(splits['fit']):,} rows fitted, {len(splits['validation']):,} held out, {BATCH} a batch.\n")
    print("| loop | ms an epoch, median (least–most) | epochs |\n|---|---|---|")
    for name, each in seconds.items():
        least, middle, most = (1000 * value for value in (min(each), median(each), max(each)))
        print(f"| {name} | {middle:.0f} ({least:.0f}–{most:.0f}) | {len(each)} |")
    print(f"\nOurs takes {median(seconds['ours']) / median(seconds['pythae']):.2f} of pythae's time.")


if __name__ == "__main__":
    main()
