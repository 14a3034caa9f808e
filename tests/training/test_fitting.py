"""Fitting: repeatable, resumable, and scored by the held-out bound alone."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training import config, files, fit, objective
from training.batches import Batch
from training.config import Run, Unusable
from training.fit import Fitted


def short(epochs: int, **changes: object) -> Run:
    """`tiny`, stopped early."""
    plain = config.read(Path("configs/tiny.yaml")).plain()
    return config.check({**plain, "optimiser": {**plain["optimiser"], "epochs": epochs}, **changes}, "a test")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """What was kept."""
    return dict(fit.load(folder).vae.state_dict())


def test_a_run_that_was_killed_ends_where_an_uninterrupted_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of the third epoch and resumed: the same weights to the bit, and the same history."""
    run = short(5)
    whole = fit.fit(run, tmp_path / "whole")
    step = fit.Module.training_step

    def killed(module: fit.Module, batch: Batch, index: int) -> torch.Tensor:
        if module.current_epoch == 2 and index == 5:
            raise SystemExit("killed")
        return step(module, batch, index)

    with monkeypatch.context() as patched:
        patched.setattr(fit.Module, "training_step", killed)
        with pytest.raises(SystemExit):
            fit.fit(run, tmp_path / "killed")
    resumed = fit.fit(run, tmp_path / "killed", resume=True)
    assert resumed.figures == whole.figures
    before, after = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Fitted, Path]:
    """Four epochs of `tiny` that nobody interrupted, and their folder."""
    folder = tmp_path_factory.mktemp("whole")
    return fit.fit(short(4), folder), folder


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from training import config, fit, picture

torch.set_num_threads(1)
run, folder, where, count = config.read(Path(sys.argv[1])), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
step, save = fit.Module.training_step, torch.save

def stepped(module, batch, index):
    if where == "step" and module.global_step == count:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(module, batch, index)

def saved(values, file):
    global count
    if where == "save" and (count := count - 1) < 0:
        file.write(b"half a checkpoint")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    save(values, file)

def drawn(*given):
    if where == "picture":
        given[-1].write(b"half a picture")
        given[-1].flush()
        os.kill(os.getpid(), signal.SIGKILL)
    draw(*given)

draw = picture.draw
fit.Module.training_step, torch.save, picture.draw = stepped, saved, drawn
fit.fit(run, folder)
"""


@pytest.mark.parametrize(("where", "count"), [("step", 23), ("save", 2), ("save", 3), ("picture", 0)])
def test_a_process_that_was_killed_at_any_step_is_gone_on_from(
    where: str, count: int, whole: tuple[Fitted, Path], tmp_path: Path
) -> None:
    """SIGKILL within an epoch, or with half a checkpoint or picture written: resumed, it ends as it would have.

    To the bit, with all of its files whole, and no half of one left.
    """
    path = tmp_path / "run.yaml"
    path.write_text(config.write(short(4)))
    command = [sys.executable, "-c", KILLED, str(path), str(tmp_path / "killed"), where, str(count)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert (tmp_path / "killed" / "last.ckpt").exists()
    assert not (tmp_path / "killed" / "picture.png").exists()
    resumed = fit.fit(short(4), tmp_path / "killed", resume=True)
    assert resumed.figures == whole[0].figures
    before, after = weights(whole[1]), weights(tmp_path / "killed")
    assert all(torch.equal(before[name], after[name]) for name in before)
    names = [sorted(path.name for path in folder.iterdir()) for folder in (whole[1], tmp_path / "killed")]
    assert names[0] == names[1]


def broken_off(path: Path) -> None:
    """Write half a file."""
    with files.whole(path) as file:
        file.write(b"half")
        raise SystemExit


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """What breaks off leaves what was there, or nothing; what comes to its end is there under its name alone."""
    path = tmp_path / "metrics.json"
    for before in (None, "old"):
        with pytest.raises(SystemExit):
            broken_off(path)
        assert (path.read_text() if path.exists() else None) == before
        files.write(path, "old")
    assert list(tmp_path.iterdir()) == [path]


def test_what_can_not_be_resumed_is_refused(tmp_path: Path) -> None:
    """Neither an empty folder nor the run of another config is gone on from."""
    with pytest.raises(Unusable, match="nothing to resume"):
        fit.fit(short(1), tmp_path / "none", resume=True)
    fit.fit(short(1), tmp_path / "one")
    with pytest.raises(Unusable, match="another config"):
        fit.fit(short(1, seed=1), tmp_path / "one", resume=True)


def test_a_run_from_before_an_option_was_there_is_gone_on_from(tmp_path: Path) -> None:
    """A config that lacks what is now written out is the same run, where that is left as it was."""
    run = short(2)
    whole = fit.fit(run, tmp_path)
    for name in ("last.ckpt", "best.ckpt"):
        kept = torch.load(tmp_path / name, weights_only=True)
        del kept["run"]["trainer"], kept["run"]["encoder"]["embedding"]
        torch.save(kept, tmp_path / name)
    assert fit.fit(run, tmp_path, resume=True).figures == whole.figures
    with pytest.raises(Unusable, match="another config"):
        fit.fit(short(2, trainer={"precision": "bf16-mixed"}), tmp_path, resume=True)


def test_the_folder_holds_what_a_person_looks_for(run_folder: Path, fitted: Fitted) -> None:
    """Config, checkpoints, picture, and the two terms of every epoch; the kept epoch is the best one."""
    assert {path.name for path in run_folder.iterdir()} == {
        *("config.yaml", "best.ckpt", "last.ckpt", "metrics.json", "picture.png")
    }
    assert config.read(run_folder / "config.yaml") == fitted.run
    figures = json.loads((run_folder / "metrics.json").read_text())
    assert fit.held_out(fitted.figures[-1]) == max(map(fit.held_out, figures))
    assert (run_folder / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_weights_are_refused_on_other_data(run_folder: Path, tmp_path: Path) -> None:
    """A checkpoint whose splits are not those that its config now gives isn't loaded."""
    kept = torch.load(run_folder / "best.ckpt", weights_only=True)
    torch.save({**kept, "splits": dict.fromkeys(kept["splits"], "0" * 64)}, tmp_path / "best.ckpt")
    with pytest.raises(Unusable, match="other rows"):
        fit.load(tmp_path)


def test_an_objective_that_runs_away_is_named(tmp_path: Path) -> None:
    """A learning rate that ends in NaN is one clear line, with what to change."""
    with pytest.raises(Unusable, match=r"lower optimiser\.lr"):
        fit.fit(short(3, optimiser={"lr": 1e30, "epochs": 3}), tmp_path)


def test_beta_rises_over_the_warm_up_and_never_enters_the_bound(fitted: Fitted) -> None:
    """β is a training matter: linear, then constant; the ELBO is the objective at β = 1."""
    wanted = config.Objective(beta=2.0, warm_up=3)
    assert [objective.beta_at(epoch, wanted) for epoch in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]
    x = torch.from_numpy(fitted.data.splits["test"][:5])
    terms = objective.terms(fitted.vae, x, torch.zeros(1, 2))
    assert torch.equal(objective.elbo(terms), objective.weighted(terms, 1.0))
    assert torch.allclose(objective.weighted(terms, 3.0), terms.log_likelihood - 3 * terms.kl)
