"""Data sets: real rows, in four splits that share none."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from service import artifact
from training import config, data
from training.config import Unusable
from training.data import SPLITS, DataSet

WANTED: list[tuple[config.Data, tuple[int, ...], str, tuple[int, ...]]] = [
    (config.Mnist(name="mnist"), (28, 28), "uint8", (3000, 500, 1000, 500)),
    (config.Digits(name="digits"), (8, 8), "uint8", (1000, 197, 400, 200)),
    (config.Digits(name="digits", binarise=7), (8, 8), "uint8", (953, 197, 400, 200)),
    (config.BreastCancer(name="breast-cancer"), (30,), "float64", (178, 36, 99, 44)),
    (config.Diabetes(name="diabetes"), (11,), "float64", (221, 45, 121, 55)),
]


@pytest.mark.parametrize(("wanted", "shape", "dtype", "sizes"), WANTED, ids=lambda value: str(value)[:40])
def test_a_data_set_is_what_it_says(
    wanted: config.Data, shape: tuple[int, ...], dtype: str, sizes: tuple[int, ...]
) -> None:
    """Shape, dtype and split sizes are as documented, and the same rows come each time."""
    found, again = data.load(wanted), data.load(wanted)
    assert (found.event_shape, found.event_dtype) == (shape, dtype)
    assert tuple(len(found.splits[name]) for name in SPLITS) == sizes
    assert found.digests == again.digests
    assert within_support(found)


@pytest.mark.parametrize("wanted", [wanted for wanted, *_ in WANTED], ids=lambda value: str(value)[:40])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_row_stands_twice(wanted: config.Data, seed: int) -> None:
    """By value, not by place: neither in two splits, nor twice in one."""
    held = [row.tobytes() for row in every_row(data.load(wanted.model_copy(update={"split_seed": seed})))]
    assert len(held) == len(set(held))


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_no_committed_config_has_a_row_in_two_splits(path: Path) -> None:
    """Nor does the artifact that was made from it: its digests are those of these splits."""
    found = data.load(config.read(path).data)
    held = [row.tobytes() for row in every_row(found)]
    assert len(held) == len(set(held))
    if (folder := Path("exported_models") / path.stem / "1").exists():
        assert artifact.read(folder).manifest.training.splits == found.digests


def idx(rows: NDArray[Any]) -> bytes:
    """Levels as MNIST's own files have them."""
    return bytes((0, 0, 8, rows.ndim)) + np.array(rows.shape, ">u4").tobytes() + rows.tobytes()


def test_all_of_mnist_comes_from_its_own_files(tmp_path: Path) -> None:
    """Its test digits are the test split, but for one that is a training digit too; the others are cut from those."""
    pixels = np.random.default_rng(0).integers(0, 256, (150, 28, 28), np.uint8)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(pixels[:120]))
    (tmp_path / "t10k-images.idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels[119:])))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(pixels[:120, 0, 0]))
    wanted = config.Mnist(name="mnist", path=str(tmp_path))
    found = data.load(wanted)
    assert [len(found.splits[name]) for name in SPLITS] == [100, 10, 10, 30]
    np.testing.assert_array_equal(found.splits["test"], pixels[120:])
    assert len({row.tobytes() for row in every_row(found)}) == 150
    assert "120 training and 31 test digits" in found.source
    drawn = data.load(wanted.model_copy(update={"binarise": "drawn"}))
    assert (drawn.support.highest, len(drawn.drawn(np.random.default_rng(0)))) == (1, 100)


def test_a_folder_without_mnists_files_says_which_are_lacking(tmp_path: Path) -> None:
    """And files that are something else."""
    wanted = config.Mnist(name="mnist", path=str(tmp_path))
    with pytest.raises(Unusable, match="holds no train-images-idx3-ubyte, nor"):
        data.load(wanted)
    for stem, size in (("train-images", 28), ("t10k-images", 27)):
        (tmp_path / f"{stem}-idx3-ubyte").write_bytes(
            idx(np.arange(40 * size * size, dtype=np.uint8).reshape(40, size, size))
        )
    with pytest.raises(Unusable, match="which aren't MNIST's"):
        data.load(wanted)


def every_row(found: DataSet) -> list[NDArray[Any]]:
    """The rows of all four splits, one after another."""
    return [row for part in found.splits.values() for row in part]


def within_support(found: DataSet) -> bool:
    """Whether every row lies on the support that the data set states."""
    rows = np.concatenate([part.reshape(len(part), -1) for part in found.splits.values()])
    if found.support.kind == "real":
        return bool(np.isfinite(rows).all())
    return bool(rows.min() == found.support.lowest and rows.max() == found.support.highest)


@pytest.mark.parametrize("rows", [20, 357, 1001])
def test_splits_are_disjoint_and_waste_nothing(rows: int) -> None:
    """Every row falls in exactly one split, whatever the seed."""
    for seed in range(5):
        parts = data.split(np.arange(rows), data.shares(rows), seed)
        assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(rows))
        assert all(len(part) for part in parts.values())


def test_the_table_names_its_columns_and_keeps_malignant_rows_apart() -> None:
    """Thirty named columns without invented units; all 212 malignant rows are anomalies and none is in a split."""
    found = data.load(config.BreastCancer(name="breast-cancer"))
    assert found.features is not None
    assert [feature.name for feature in found.features][:2] == ["mean radius", "mean texture"]
    assert {feature.unit for feature in found.features} == {None}
    assert found.anomalies is not None
    assert len(found.anomalies) == 212
    held = {row.tobytes() for part in found.splits.values() for row in part}
    assert not held & {row.tobytes() for row in found.anomalies}


def test_your_own_rows_are_taken_from_a_file(tmp_path: Path) -> None:
    """uint8 rows are levels up to the highest stated, float64 rows are real."""
    path = tmp_path / "rows.npy"
    np.save(path, np.random.default_rng(0).integers(4, size=(40, 4), dtype=np.uint8))
    levels = data.load(config.File(name="file", path=str(path), source="a test", highest=9))
    assert (levels.support.highest, levels.event_shape) == (9.0, (4,))
    np.save(path, np.random.default_rng(0).standard_normal((40, 2, 3)))
    real = data.load(config.File(name="file", path=str(path), source="a test"))
    assert (real.support.kind, real.event_shape) == ("real", (2, 3))


def test_repeated_rows_of_a_file_are_taken_once(tmp_path: Path) -> None:
    """Forty rows, each twice, are forty; −0 is 0; and forty times the same row are too few."""
    path = tmp_path / "rows.npy"
    wanted = config.File(name="file", path=str(path), source="a test")
    rows = np.arange(80.0).reshape(40, 2)
    twice = np.concatenate([rows, rows])
    twice[40, 0] = -0.0
    np.save(path, twice)
    assert sorted(tuple(row) for row in every_row(data.load(wanted))) == [tuple(row) for row in rows]
    np.save(path, np.ones((40, 2)))
    with pytest.raises(Unusable, match="1 different"):
        data.load(wanted)


def test_digits_drawn_in_black_and_white_are_other_ones_in_every_epoch() -> None:
    """A pixel is 1 as often as its level says; held-out rows are drawn once, and fitted ones anew by the epoch."""
    drawn = data.load(config.Mnist(name="mnist", binarise="drawn"))
    assert tuple(len(drawn.splits[name]) for name in SPLITS) == (3000, 500, 1000, 500)
    assert set(np.unique(drawn.splits["test"])) == {0, 1}
    assert drawn.support.highest == 1
    epochs = [drawn.drawn(np.random.default_rng([0, epoch])) for epoch in (0, 1, 1)]
    assert (epochs[1] == epochs[2]).all()
    assert (epochs[0] != epochs[1]).mean() > 0.02
    chances = drawn.chances
    assert chances is not None
    for rows in (*epochs[:2], drawn.splits["fit"]):
        assert abs((rows - chances).sum()) < 5 * np.sqrt((chances * (1 - chances)).sum())
        assert (rows[chances == 0] == 0).all()
        assert (rows[chances == 1] == 1).all()
