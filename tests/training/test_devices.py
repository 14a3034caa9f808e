"""Devices, strategy and precision: Lightning's, with the same fit whoever computes it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from service import noise
from tests import kit
from training import config, fit, objective
from training.__main__ import app
from training.config import Run, Unusable
from training.fit import Fitted

TINY = config.read(kit.ROOT / "configs" / "tiny.yaml").plain()


def run(epochs: int = 2, **trainer: object) -> Run:
    """`tiny`, stopped early, on these devices."""
    return config.check({**TINY, "optimiser": {**TINY["optimiser"], "epochs": epochs}, "trainer": trainer}, "a test")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """Two epochs in one process, in float32."""
    return fit.fit(run(), tmp_path_factory.mktemp("whole"))


TWO = """
import shutil, sys
from pathlib import Path
import torch
from training import batches, config, fit

torch.set_num_threads(1)
run, scratch = config.read(Path(sys.argv[1])), Path(sys.argv[2])
step = fit.Module.training_step

def stepped(module, batch, index):
    if module.current_epoch == 1 and index == 0 and batches.place()[0] == 0:
        (scratch / "resumed").mkdir(exist_ok=True)
        shutil.copy(scratch / "whole" / "last.ckpt", scratch / "resumed")
    return step(module, batch, index)

fit.Module.training_step = stepped
fit.fit(run, scratch / "whole")
fit.Module.training_step = step
fit.fit(run, scratch / "resumed", resume=True)
"""


def test_two_processes_do_what_one_does(whole: Fitted, tmp_path: Path) -> None:
    """ddp with a part of each batch a process, the last one uneven: the same fit but for roundings, and files once.

    Resumed after the first epoch it ends with the same bits.
    """
    wanted = run(accelerator="cpu", devices=2, strategy="ddp")
    (tmp_path / "run.yaml").write_text(config.write(wanted))
    path = tmp_path / "two.py"  # Lightning starts the program again, so it must be one that has a name
    path.write_text(TWO)
    command = [sys.executable, str(path), str(tmp_path / "run.yaml"), str(tmp_path)]
    done = subprocess.run(command, env=kit.environment(), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    two, resumed = fit.load(tmp_path / "whole"), fit.load(tmp_path / "resumed")
    assert resumed.figures == two.figures
    again = resumed.vae.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in two.vae.state_dict().items())
    for line, other in zip(whole.figures, two.figures, strict=True):
        assert line == pytest.approx(other, rel=1e-6)
    for name, value in whole.vae.state_dict().items():
        assert torch.allclose(value, two.vae.state_dict()[name], atol=1e-4)
    names = {"config.yaml", "best.ckpt", "last.ckpt", "metrics.json", "picture.png"}
    assert {path.name for path in (tmp_path / "whole").iterdir()} == names
    assert json.loads((tmp_path / "whole" / "metrics.json").read_text()) == two.figures


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_a_precision_is_for_fitting_alone(precision: str, whole: Fitted, tmp_path: Path) -> None:
    """Weights are kept and loaded in float32, and their bound in float32 is near the one that was fitted by."""
    found = fit.fit(run(precision=precision), tmp_path / "other")
    assert {value.dtype for value in found.vae.state_dict().values()} == {torch.float32}
    assert found.figures != whole.figures
    assert fit.held_out(found.figures[-1]) == pytest.approx(fit.held_out(whole.figures[-1]), abs=1.0)
    x = torch.from_numpy(found.data.splits["validation"])
    bank = torch.tensor(noise.bank(0, fit.HELD_OUT_DRAWS, 2).noise)
    exact = float(objective.terms(found.vae, x, bank).bound.mean())
    assert exact == pytest.approx(fit.held_out(found.figures[-1]), abs=0.05)


def test_what_is_said_on_the_command_line_goes_before_the_config(tmp_path: Path) -> None:
    """And is written into the run's folder, so that it can be said again."""
    path = tmp_path / "run.yaml"
    path.write_text(config.write(run(1, precision="64-true")))
    command = ["fit", str(path), "--runs", str(tmp_path), "--precision", "bf16", "--devices", "1"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    kept = config.read(tmp_path / "tiny" / "config.yaml").trainer
    assert (kept.precision, kept.devices, kept.accelerator) == ("bf16-mixed", 1, "auto")


@pytest.mark.parametrize(
    ("trainer", "said"),
    [
        ({"accelerator": "abacus"}, "invalid accelerator"),
        ({"accelerator": "mps"}, "no float64"),
        ({"accelerator": "cpu", "precision": "16-mixed"}, "needs a GPU"),
        ({"precision": "bf16-true"}, "32-true.*bf16-mixed"),
        ({"devices": 0}, "at least 1"),
        ({"devices": "two"}, "devices"),
        ({"accelerator": "cpu", "devices": -1}, "on a processor, devices is how many processes"),
        ({"accelerator": "cpu", "devices": [0]}, "on a processor, devices is how many processes"),
        ({"strategy": "hope"}, "invalid strategy"),
        ({"strategy": "ddp_spawn"}, "use ddp"),
    ],
)
def test_what_can_not_be_had_is_refused(trainer: dict[str, object], said: str, tmp_path: Path) -> None:
    """In one line, before anything is written."""
    with pytest.raises(Unusable, match=said) as refused:
        fit.fit(run(2, **trainer), tmp_path / "run")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()
