"""The benchmark of a GPU, as far as it runs without one: end to end on the CPU, and what it measures with."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks import gpu, subjects
from service import artifact
from service.artifact import Artifact
from service.engine import Engine, open_engine
from tests.kit import COMMITTED


class Through(nn.Module):
    """A module whose answers are the engine's."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        """The score graph."""
        answers = self.engine.compute("elbo", {"x": x.numpy(), "noise": noise.numpy()})
        return tuple(torch.from_numpy(answers[name]) for name in ("log_likelihood", "log_weight", "kl"))


def test_it_runs_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every table is there, what needs CUDA says that it was skipped, and only --write writes."""
    shutil.copytree(COMMITTED / "tiny", tmp_path / "tiny")
    results = tmp_path / "gpu.md"
    monkeypatch.setattr(gpu, "RESULTS", results)
    few = ["--device", "cpu", "--folder", str(tmp_path), "--models", "tiny", "--seconds", "0.05", "--callers", "2"]
    gpu.main([*few, "--rows", "1", "4", "--many", "40", "--requests", "1", "8"])
    assert not results.exists()
    said = capsys.readouterr().out
    lines = [line for line in said.splitlines() if line.startswith("| ") and "rows" not in line]
    assert [line.split(" | ")[:2] for line in lines[:3]] == [["| 1", "16"], ["| 4", "16"], ["| 1", "40"]]
    assert [line.split(" | ")[:3] for line in lines[3:5]] == [["| tiny", "1", "2"], ["| tiny", "8", "2"]]
    assert len(lines) == 3 + 2 + 1
    assert "runtime captured: skipped, it is CUDA's alone" in said
    assert "torch eager: skipped, the weights of tiny are in its graphs alone" in said


def test_a_way_that_answers_wrong_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's way runs on the same batch; another bank's answers are off."""
    found = artifact.read(COMMITTED / "tiny" / "1")
    engine = open_engine(found)
    feeds = gpu.batch(found, 3, 16)

    def module(_: Artifact) -> nn.Module:
        return Through(engine)

    monkeypatch.setattr(gpu, "torch_module", module)
    compute = gpu.torch_way(found, "eager", feeds, "cpu")
    gpu.hold(found, compute(feeds), engine.compute("elbo", feeds), "torch eager")
    with pytest.raises(SystemExit, match="torch eager: log_likelihood is off by"):
        gpu.hold(found, compute({**feeds, "noise": feeds["noise"] + np.float32(1)}), engine.compute("elbo", feeds),
                 "torch eager")  # fmt: skip


def test_the_subjects_are_as_large_as_they_say() -> None:
    """About 2 and 36 million operations a row, pictures with channels, and the same weights every time."""
    fitted = subjects.fitted_mlp()
    assert subjects.flops(fitted.vae, (784,)) == 2_179_072
    again = subjects.fitted_mlp().vae.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in fitted.vae.state_dict().items())
    conv = subjects.fitted_conv().vae
    assert subjects.flops(conv, (3, 64, 64)) == 35_569_664
    with torch.no_grad():
        loc = conv.parameters_at(conv.posterior(torch.zeros(2, 3, 64, 64)).moments()[0])["loc"]
    assert loc.shape == (2, 3 * 64 * 64)
