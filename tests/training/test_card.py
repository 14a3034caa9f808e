"""The model card: written by export and calibration and anew at any time, from the artifact and held-out rows."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from service import artifact
from service.errors import ArtifactRefused
from tests.kit import COMMITTED
from training import calibrate, card
from training.card import findings, page


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
    names = {artifact.CARD, *card.PICTURES}
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
    text = page.write(found, seen, card.PICTURES)
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
        assert (draw(bare, seen) or b"").startswith(b"\x89PNG"), name


def test_a_latent_that_carries_nothing_is_not_active() -> None:
    """Active latents come with the one that carries most first."""
    empty = np.zeros((3, 1))
    seen = findings.Findings(empty, True, empty, empty, empty[:, 0], np.tile([0.01, 2.0, 0.3], (3, 1)), {})
    assert seen.active == [1, 2]
