"""The model card: written by export and calibration and anew at any time, from the artifact and held-out rows."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from service import artifact, engine
from service.artifact import Feature
from service.errors import ArtifactRefused
from tests.kit import COMMITTED
from training import calibrate, card
from training.card import columns, findings, page, windows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of tiny/1 to write into."""
    return Path(shutil.copytree(COMMITTED / "tiny" / "1", tmp_path / "tiny" / "1"))


def test_a_card_is_written_anew_and_changes_nothing_else(folder: Path) -> None:
    """README.md and its pictures are listed with their digests; graphs, golden rows and calibration are as before."""
    before = artifact.read(folder).manifest
    (folder / artifact.CARD).write_text("spoilt")  # a card that isn't the manifest's is refused like any other file
    with pytest.raises(ArtifactRefused, match=r"README\.md is not the file"):
        card.write(folder)
    shutil.rmtree(folder)
    shutil.copytree(COMMITTED / "tiny" / "1", folder)
    assert card.write(folder) == folder / artifact.CARD
    after = artifact.read(folder)
    names = {artifact.CARD, *card.PICTURES} - {"card-columns.png"}  # which is a table's
    assert names == set(after.card)
    kept = {name: file for name, file in before.files.items() if name not in names}
    assert {name: file for name, file in after.manifest.files.items() if name not in names} == kept
    assert after.manifest.calibration == before.calibration
    assert "golden rows" in after.card[artifact.CARD].decode()


def test_a_card_says_what_the_manifest_and_the_rows_say() -> None:
    """The figures of a committed card are those of its manifest, and of its test rows scored anew."""
    found = artifact.read(COMMITTED / "tiny" / "1")
    rows = calibrate.held_out_rows(found.manifest, "test")
    seen = findings.find(found, rows)
    # exported when a bank's draws were still Sobol's: the same bound, estimated with other noise
    assert seen.elbo.mean() == pytest.approx(found.manifest.training.held_out["elbo"], abs=0.05)
    assert seen.of_latents is not None
    assert seen.of_latents.sum() == pytest.approx(found.manifest.training.held_out["kl"], rel=1e-4)
    text = page.write(found, seen, card.PICTURES.keys() - {"card-columns.png"})
    assert text == found.card[artifact.CARD].decode()
    assert "| ELBO | -21.29 nats a row |" in text
    assert "| bits per dimension | 0.4799," in text
    assert "| 0.05 | 4.99% on average |" in text
    assert "| 0.001 | none: it takes 999 calibration rows |" in text
    assert "2 of 2 latents carry more than 0.1 nats" in text


def test_a_card_without_a_calibration_says_how_to_get_one() -> None:
    """And shows the bound of its rows all the same."""
    found = artifact.read(COMMITTED / "tiny" / "1")
    fields = found.manifest.model_copy(update={"calibration": None})
    bare = artifact.Artifact(found.folder, fields, found.golden, None, found.digest)
    seen = findings.find(bare, None)
    assert "python -m training calibrate" in page.write(bare, seen, ())
    assert "card-" not in page.write(bare, seen, ())
    for name, draw in card.PICTURES.items():
        drawn = draw(bare, seen)
        assert drawn is None if name == "card-columns.png" else (drawn or b"").startswith(b"\x89PNG"), name


def test_a_latent_that_carries_nothing_is_not_active() -> None:
    """Active latents come with the one that carries most first."""
    empty = np.zeros((3, 1))
    kl = np.tile([0.01, 2.0, 0.3], (3, 1))
    seen = findings.Findings(empty, True, empty, empty, empty[:, 0], kl, np.ones(3), {})
    assert seen.active == [1, 2]


def test_without_a_kl_for_each_latent_the_active_ones_are_those_whose_means_move() -> None:
    """By the variance of the posterior mean over rows, in the prior's; the page says which measure it is."""
    found = artifact.read(COMMITTED / "tiny" / "1")
    exact = findings.find(found, None)
    seen = dataclasses.replace(exact, latent_kl=None, activity=np.array([0.009, 0.2]))
    assert seen.active == [1]
    text = page.write(found, seen, ())
    assert "1 of 2 latents are active" in text
    assert "Burda et al. 2016" in text
    means = np.asarray(engine.open_engine(found, "cpu").compute("encoder", {"x": exact.rows})["mean"], np.float64)
    np.testing.assert_allclose(exact.activity, means.var(0))  # of a standard normal


def test_what_reconstructions_explain() -> None:
    """1 for rows given back, 0 for their mean, below 0 beyond; columns of a table count alike, whatever their units."""
    x = np.random.default_rng(0).normal(size=(50, 2)) * [1.0, 1000.0]
    mean = np.tile(x.mean(0), (50, 1))
    half = np.stack([x[:, 0], mean[:, 1]], 1)
    for reconstructed, wanted in ((x, 1.0), (mean, 0.0), (half, 0.5), (3 * mean - 2 * x, -8.0)):
        seen = findings.Findings(x, True, reconstructed, x, x[:, 0], None, np.ones(1), {})
        assert seen.explained == pytest.approx(wanted)
    picture = findings.Findings(x[:, None], True, half[:, None], x, x[:, 0], None, np.ones(1), {})
    assert picture.explained == pytest.approx(0.0, abs=1e-4)  # of what varies, next to nothing


def test_a_model_from_elsewhere_whose_reconstructions_are_far_off_is_told_of_preprocessing() -> None:
    """A decoder of 0 to 1 for rows of 0 to 255 is no error, and nobody's wish."""
    found = artifact.read(COMMITTED / "tiny" / "1")
    training = found.manifest.training.model_copy(update={"config": {"kind": "own"}})
    own = dataclasses.replace(found, manifest=found.manifest.model_copy(update={"training": training}))
    seen = findings.find(own, calibrate.held_out_rows(found.manifest, "test"))
    assert "variance explained" in page.write(own, seen, ())
    assert "`preprocessing`" not in page.write(own, seen, ())
    far = dataclasses.replace(seen, reconstructed=seen.reconstructed + 255.0)
    assert "`preprocessing` has to say so" in page.write(own, far, ())
    assert "variance explained" not in page.write(found, far, ())


@pytest.mark.parametrize(
    ("shape", "kind", "picture", "window"),
    [
        ((8, 8), None, True, False),
        ((3, 8, 8), None, True, False),
        ((64,), None, False, False),
        ((64,), "conv1d", False, True),
        ((2, 64), None, False, True),
        ((6, 64), None, False, True),
        ((6, 12), "residual1d", False, True),
    ],
)
def test_windows_are_told_from_pictures_and_tables(
    shape: tuple[int, ...], kind: str | None, picture: bool, window: bool
) -> None:
    """By the encoder's kind where it is known, and else by how long they are."""
    manifest = artifact.read(COMMITTED / "tiny" / "1").manifest
    training = manifest.training.model_copy(update={"config": {"encoder": {"kind": kind}}})
    such = manifest.model_copy(update={"training": training, "event_shape": list(shape)})
    assert (findings.is_picture(such), findings.is_window(such)) == (picture, window)


def test_windows_are_drawn_as_curves() -> None:
    """One a channel, at most three, on the range of the held-out ones; a walk has one a step."""
    x = np.random.default_rng(0).normal(size=(4, 5, 20))
    figure = windows.rows([("held out", x), ("prior", 100 * x)])
    drawn = [axis for axis in figure.axes if axis.lines]
    assert [len(axis.lines) for axis in drawn] == [3] * 8
    assert figure.axes[-1].get_ylim() == (x.min(), x.max())
    walked = Figure()
    windows.walks(walked, {3: x[[0] * 9, 0], 1: x[[0] * 9, 1]})
    assert [len(axis.lines) for axis in walked.axes] == [9, 9]
    assert [axis.get_ylabel() for axis in walked.axes] == ["z3", "z1"]


def test_each_column_of_a_table_has_its_shares() -> None:
    """Of the rows and of the model's, each adding up to 1; codes by their names, and gaps left out."""
    generator = np.random.default_rng(0)
    rows = np.stack([generator.normal(size=60), generator.integers(0, 2, 60)], 1)
    rows[::3, 0] = np.nan
    drawn = np.stack([generator.normal(size=1000), generator.integers(0, 2, 1000)], 1)
    named = [Feature(name="age", unit="years"), Feature(name="sex", categories=("f", "m"))]
    figure = columns.histograms(rows, drawn, named, "held-out rows")
    first, second = figure.axes[:2]
    assert [axis.get_title() for axis in (first, second)] == ["age (years)", "sex"]
    assert [label.get_text() for label in second.get_xticklabels()] == ["f", "m"]
    bars = [patch.get_height() for patch in second.patches if isinstance(patch, Rectangle)]
    np.testing.assert_allclose(bars, np.bincount(rows[:, 1].astype(int)) / 60)
    heights = [patch.get_height() for patch in first.patches if isinstance(patch, Rectangle)]
    assert sum(heights) == pytest.approx(1.0, abs=0.06)  # the outermost are beyond the picture
    many = columns.histograms(np.zeros((5, 30)), np.zeros((5, 30)), (), "golden rows")
    assert "the first 24 of 30 columns" in many.legends[0].get_texts()[1].get_text()
