"""A bad config or data file is one clear line and status 2, never a traceback."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from training import config
from training.__main__ import app
from training.config import Unusable

GOOD = yaml.safe_load(Path("configs/tiny.yaml").read_text())
BAD = [
    ({"colour": "red"}, "colour"),
    ({"latent_size": "two"}, "latent_size"),
    ({"latent_size": True}, "latent_size"),
    ({"latent_size": 0}, "latent_size"),
    ({"name": "../up"}, "name"),
    ({"likelihood": {"family": "cauchy"}}, "likelihood"),
    ({"encoder": {"kind": "mlp", "sizes": []}}, "encoder.mlp.sizes"),
    ({"optimiser": {"lr": -1.0}}, "optimiser.lr"),
    ({"data": {"name": "imagenet"}}, "data"),
]


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_committed_config_is_read(path: Path) -> None:
    """Each of configs/ is a run of its file's name, and survives being written and read again."""
    run = config.read(path)
    assert run.name == path.stem
    assert config.check(yaml.safe_load(config.write(run)), "again") == run


@pytest.mark.parametrize(("change", "place"), BAD, ids=str)
def test_a_wrong_value_is_named(change: dict[str, object], place: str, tmp_path: Path) -> None:
    """The line says in which file, at which key, and what is wrong; the status is 2."""
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump({**GOOD, **change}))
    line = refusal("fit", str(path), "--runs", str(tmp_path))
    assert line.startswith(f"{path}: {place}")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"laten_size": 4}, "laten_size: there is nothing of that name here; look at its spelling"),
        ({"encoder": {"sizes": [4]}}, "encoder: say its kind"),
        ({"objective": {"kind": "importance_weighted"}}, "importance_weighted with one draw is the elbo: set draws"),
    ],
    ids=["a key", "no kind", "what doesn't go together"],
)
def test_what_is_wrong_is_said_in_our_words(change: dict[str, object], said: str, tmp_path: Path) -> None:
    """The library that checks a config speaks of inputs and tags."""
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump({**GOOD, **change}))
    line = refusal("fit", str(path), "--runs", str(tmp_path))
    assert said in line
    assert "Value error" not in line


@pytest.mark.parametrize(("written", "instead"), [("3e-3", "3.0e-3 or 0.003"), ("1e3", "1.0e+3 or 1000.0")])
def test_a_number_that_yaml_takes_for_text_is_shown_as_it_should_be(written: str, instead: str, tmp_path: Path) -> None:
    """The line says how to write it, and both of its ways are read."""
    path = tmp_path / "run.yaml"
    text = Path("configs/tiny.yaml").read_text()
    path.write_text(text.replace("lr: 0.003", f"lr: {written}"))
    assert f"write {instead}" in refusal("fit", str(path), "--runs", str(tmp_path))
    for way in instead.split(" or "):
        path.write_text(text.replace("lr: 0.003", f"lr: {way}"))
        assert config.read(path).optimiser.lr == float(written)


def test_a_place_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    """Runs kept in a file are one line that names it."""
    path = tmp_path / "file"
    path.write_text("not a folder")
    assert refusal("fit", "configs/tiny.yaml", "--runs", str(path)).startswith(str(path))


def test_what_is_not_yaml_is_named(tmp_path: Path) -> None:
    """A slip in the syntax, a list, an empty file, a binary one and a missing one are one line each."""
    path = tmp_path / "bad.yaml"
    for content in (b"name: [tiny\nseed: 1", b"- 1\n", b"", b"\xff\xfe\x00"):
        path.write_bytes(content)
        assert refusal("fit", str(path)).startswith(str(path))
    assert "No such file" in refusal("fit", str(tmp_path / "absent.yaml"))


def test_a_bad_data_file_is_named(tmp_path: Path) -> None:
    """A missing file, a pickle, text, the wrong dtype, too few rows, and NaN are one line each."""
    rows, run = tmp_path / "rows.npy", tmp_path / "run.yaml"
    data = {"name": "file", "path": str(rows), "source": "a test"}
    run.write_text(yaml.safe_dump({**GOOD, "data": data}))

    def refused() -> str:
        return refusal("fit", str(run), "--runs", str(tmp_path))

    assert "No such file" in refused()
    rows.write_text("not an array")
    assert "not an .npy file" in refused()
    np.save(rows, np.array([{"a": 1}] * 30))
    assert "not an .npy file" in refused()
    np.save(rows, np.zeros((30, 4), np.complex64))
    assert "complex64" in refused()
    np.save(rows, np.zeros((3, 4), np.uint8))
    assert "at least 20" in refused()
    np.save(rows, np.full((30, 4), np.inf))
    assert "finite" in refused()
    np.save(rows, np.where(np.eye(30) > 0, np.nan, 1.0))
    assert "missing: {}" in refused()


def test_grey_pixels_are_refused_by_a_bernoulli(tmp_path: Path) -> None:
    """Over [0, 1] the Bernoulli's formula is no density, so data of 17 levels isn't fitted with it."""
    path = tmp_path / "grey.yaml"
    path.write_text(yaml.safe_dump({**GOOD, "data": {"name": "digits"}}))
    assert "other than 0 and 1" in refusal("fit", str(path), "--runs", str(tmp_path))


def test_parts_that_do_not_go_together_are_named(tmp_path: Path) -> None:
    """A density over levels, levels of real values, and convolutions over a table or an odd picture."""
    conv = {"kind": "conv", "sizes": [4, 4, 4, 4], "dense": 8}
    path = tmp_path / "odd.yaml"
    for change, reason in (
        ({"likelihood": {"family": "normal"}}, "grow without bound"),
        ({"data": {"name": "breast-cancer"}, "likelihood": {"family": "discretised_logistic"}}, "whole levels"),
        ({"encoder": conv}, "divide by 16"),
    ):
        path.write_text(yaml.safe_dump({**GOOD, **change}))
        assert reason in refusal("fit", str(path), "--runs", str(tmp_path))


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    """Exporting nothing, exporting a file of another kind, and calibrating nothing are one line each."""
    refusal("export", str(tmp_path))
    (tmp_path / "best.ckpt").write_bytes(b"not a checkpoint")
    assert "not a checkpoint" in refusal("export", str(tmp_path))
    refusal("calibrate", str(tmp_path), status=1)


def test_an_unusable_config_raises_unusable() -> None:
    """From Python the same refusal is an exception with the same line."""
    with pytest.raises(Unusable, match="here: latent_size"):
        config.check({**GOOD, "latent_size": -1}, "here")


def refusal(*arguments: str, status: int = 2) -> str:
    """The one line that a command refuses with."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == status, result.output
    assert isinstance(result.exception, SystemExit)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]
