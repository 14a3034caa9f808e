"""`tiny`, fitted and exported once for all of these tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from training import config, fit
from training import exporting as export
from training.exporting import Exported
from training.fit import Fitted

torch.set_num_threads(1)  # matrices this small only wait for a second thread


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of configs/tiny.yaml."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    fit.fit(config.read(Path("configs/tiny.yaml")), folder)
    return folder


@pytest.fixture(scope="session")
def fitted(run_folder: Path) -> Fitted:
    """That run, as export loads it."""
    return fit.load(run_folder)


@pytest.fixture(scope="session")
def made(fitted: Fitted) -> dict[str, Exported]:
    """Its five graphs."""
    return export.build(fitted.vae, fitted, say=lambda _: None)
