"""The benchmark of anomalies: its protocol on a small folder, and the line that it ends with."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from benchmarks import anomaly
from training import tables

needs_pyod = pytest.mark.skipif(
    not (find_spec("pyod") and find_spec("tqdm")), reason="PyOD is not installed: pip install 'pyod>=3.6' tqdm"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table whose anomalies break the tie between two columns; another is constant. One seed, few steps."""
    generator = np.random.default_rng(0)
    normal = generator.normal(size=(240, 1)) * [1.0, -1.0] + 0.1 * generator.normal(size=(240, 2))
    strange = generator.normal(size=(40, 2))
    rows = np.concatenate((normal, strange))
    whole, constant = generator.integers(0, 4, 280), np.full(280, 3)
    table = np.column_stack((np.rint(1000 * rows), whole, constant)).astype(np.int16)
    np.savez(tmp_path / "tied.npz", X=table, y=np.r_[np.zeros(240), np.ones(40)].astype(np.int64))
    monkeypatch.setattr(anomaly, "SEEDS", (0,))
    monkeypatch.setattr(tables, "RECIPE", replace(tables.RECIPE, hidden=32, steps=300))
    return tmp_path


def last_line(said: str) -> dict[str, float]:
    """The means by detector."""
    line = said.strip().splitlines()[-1]
    assert re.fullmatch(r"mean auroc:( \w+=\d+\.\d\d)+", line)
    return {name: float(mean) for name, mean in re.findall(r"(\w+)=(\S+)", line)}


def test_ours_detects_what_it_never_saw(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Clearly better than chance, where every column by itself says nothing."""
    anomaly.main([str(folder), "--jobs", "1", "--only", "ours", "knn", "iforest"])
    means = last_line(capsys.readouterr().out)
    assert list(means) == ["ours", "knn", "iforest"]
    assert means["ours"] > 75


@needs_pyod
@pytest.mark.filterwarnings("ignore")  # PyOD's own
def test_it_ends_with_everyone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One mean for each, ours first."""
    anomaly.main([str(folder), "--jobs", "1"])
    assert list(last_line(capsys.readouterr().out)) == ["ours", "knn", "iforest", "ecod", "pca", "pyod_vae"]


def test_without_pyod_it_says_how_to_install_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, before any work."""
    monkeypatch.setattr(anomaly, "find_spec", lambda _: None)
    with pytest.raises(SystemExit, match="pip install"):
        anomaly.main([str(folder)])


def test_what_is_no_table_is_named(folder: Path) -> None:
    """A file without X and y, and a folder without a table."""
    np.savez(folder / "other.npz", Z=np.zeros(3))
    with pytest.raises(SystemExit, match=r"other\.npz"):
        anomaly.main([str(folder), "--only", "knn"])
    with pytest.raises(SystemExit, match=r"no \.npz"):
        anomaly.main([str(folder / "nowhere"), "--only", "knn"])


def test_the_halves_share_no_row_and_no_anomaly_is_fitted() -> None:
    """Half of the normal rows to fit; the rest, and all anomalies, to rank."""
    rows = np.arange(101.0)[:, None]
    found = anomaly.split(rows, rows[:, 0] >= 81, seed=1)
    assert len(found.fitted) == 40
    assert sorted(np.r_[found.fitted, found.ranked][:, 0]) == list(range(101))
    assert np.array_equal(found.ranked[:, 0] >= 81, found.strange)
