"""python -m service score and evidence: the same operations without a server, so the same numbers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from service.__main__ import main
from service.artifact import Array, Arrays
from tests.kit import NPY, NPZ, House, answered, digits, golden_rows, npy, program


class Line(Protocol):
    """The command line, in this process."""

    def __call__(self, *arguments: object) -> str:
        """Run `score` with arguments; it must refuse, and what it says must be one line."""


@pytest.fixture
def refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], small: Path
) -> Iterator[Line]:
    """Ask the command line for what it can't do."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.setenv("VAE_SERVE_MODELS", str(small))
    monkeypatch.setenv("VAE_SERVE_DEVICE", "cpu")
    monkeypatch.chdir(tmp_path)

    def refused(*arguments: object) -> str:
        assert main(["score", *map(str, arguments)]) not in (0, None)
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("vae-serve: ")
        assert len(said.err.splitlines()) == 1
        assert not (tmp_path / "out.npz").exists()
        return said.err

    yield refused
    root.handlers[:] = handlers
    root.setLevel(level)


def _scored(folder: Path, model: str, rows: Array, *options: str) -> Arrays:
    """What the command line writes."""
    np.save(folder / "rows.npy", rows)
    ended = program("score", model, str(folder / "rows.npy"), "-o", str(folder / "out.npz"), *options, device="cpu")
    assert ended.returncode == 0, ended.stderr
    assert f"{len(rows)} rows" in ended.stdout
    with np.load(folder / "out.npz", allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("tiny", {}),
        ("tiny/1", {"draws": "40", "seed": "7", "alpha": "0.5"}),
        ("mnist", {"explain": ""}),
        ("tiny", {"fdr": "0.01", "correction": "simes", "confidence": "0.8"}),
        ("breast-cancer", {}),
        ("breast-cancer", {"conditionals": ""}),
    ],
)
async def test_the_numbers_are_those_of_http(house: House, tmp_path: Path, model: str, options: dict[str, str]) -> None:
    """The same fields, to the last bit."""
    name = model.partition("/")[0]
    rows = golden_rows(name)
    flags = [part for option, value in options.items() for part in (f"--{option}", value) if part]
    query = "&".join(f"{option}={value or 'true'}" for option, value in options.items())
    by_http = answered(await house.send(f"{name}/score?{query}", npy(rows), content_type=NPY, accept=NPZ))
    by_file = _scored(tmp_path, model, rows, *flags)
    assert set(by_file) == set(by_http)
    for field, array in by_http.items():
        assert_array_equal(by_file[field], array)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--draws", "0"), "draws"),
        (("--draws", "-2"), "draws"),
        (("--seed", "-1"), "seed"),
        (("--seed", str(2**53)), "seed"),
        (("--alpha", "0"), "alpha"),
        (("--alpha", "nan"), "alpha"),
        (("--fdr", "1"), "fdr"),
    ],
)
def test_an_option_out_of_its_range_is_one_line(refusal: Line, options: tuple[str, ...], said: str) -> None:
    """The same ranges as over HTTP; nothing is written."""
    np.save("rows.npy", digits(1))
    assert said in refusal("tiny", "rows.npy", "-o", "out.npz", *options)


@pytest.mark.parametrize("spoil", ["missing", "text", "cut", "pickled", "text rows", "shape", "grey", "nan", "empty"])
def test_rows_that_cant_be_scored_are_one_line(refusal: Line, tmp_path: Path, spoil: str) -> None:
    """Whatever is wrong with the file, the reason fits on a line and the status isn't 0."""
    path = tmp_path / "rows.npy"
    match spoil:
        case "missing":
            pass
        case "text":
            path.write_text("1 2 3")
        case "cut":
            path.write_bytes(npy(digits(2))[:-5])
        case "pickled":
            np.save(path, np.array([{}], object), allow_pickle=True)
        case "text rows":
            np.save(path, np.full((1, 8, 8), "1"))
        case "shape":
            np.save(path, digits(2)[:, :7])
        case "grey":
            np.save(path, digits(2) * 0.5)
        case "nan":
            np.save(path, np.full((1, 8, 8), np.nan))
        case "empty":
            np.save(path, digits(2)[:0])
    refusal("tiny", path, "-o", "out.npz")


@pytest.mark.parametrize("model", ["nobody", "tiny/2", "tiny/x", "../tiny", ""])
def test_an_unknown_model_is_one_line_that_says_what_there_is(refusal: Line, model: str) -> None:
    """Names with their versions."""
    np.save("rows.npy", digits(1))
    assert "tiny/1" in refusal(model, "rows.npy", "-o", "out.npz")


def test_a_spoilt_artifact_is_one_line(refusal: Line, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason, as /readyz would say it."""
    monkeypatch.setenv("VAE_SERVE_MODELS", str(tiny))
    (tiny / "tiny" / "1" / "elbo.onnx").write_bytes(b"")
    np.save("rows.npy", digits(1))
    assert "elbo.onnx" in refusal("tiny", "rows.npy", "-o", "out.npz")


def test_an_answer_that_cant_be_written_is_one_line(refusal: Line) -> None:
    """A folder that isn't there."""
    np.save("rows.npy", digits(1))
    assert "out.npz" in refusal("tiny", "rows.npy", "-o", "no/out.npz")


def test_many_rows_need_no_limits(tmp_path: Path) -> None:
    """Offline a file may be longer than a request; it is cut, and its bits stay."""
    rows = digits(5000)
    found = _scored(tmp_path, "tiny", rows)
    again = _scored(tmp_path, "tiny", rows[4990:])
    assert_array_equal(found["elbo"][4990:], again["elbo"])


@pytest.mark.anyio
async def test_evidence_is_that_of_http_too(house: House, tmp_path: Path) -> None:
    """The same fields, to the last bit, and a summary for a person."""
    rows = digits(3)
    np.save(tmp_path / "rows.npy", rows)
    options = ("--draws", "600", "--seed", "4", "--confidence", "0.9")
    ended = program(
        "evidence", "tiny", str(tmp_path / "rows.npy"), "-o", str(tmp_path / "out.npz"), *options, device="cpu"
    )
    assert ended.returncode == 0, ended.stderr
    assert "3 rows measured by tiny/1" in ended.stdout
    query = "draws=600&seed=4&confidence=0.9"
    over = answered(await house.send(f"tiny/evidence?{query}", npy(rows), content_type=NPY, accept=NPZ))
    with np.load(tmp_path / "out.npz", allow_pickle=False) as archive:
        assert set(archive.files) == set(over)
        for name in archive.files:
            assert_array_equal(archive[name], over[name])
