"""The check: sound models pass, broken ones are found out, and the picture and the words say which."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks import linear
from service import artifact, check
from service.artifact import Array, Arrays, Artifact
from service.check import Report
from service.check.svg import ticks
from service.check.verdict import shape
from service.engine import Engine, open_engine
from tests.kit import COMMITTED, copied, program

Change = Callable[[str, Arrays, Mapping[str, Array]], Arrays]


@dataclass(frozen=True)
class Spoilt(Engine):
    """An engine whose answers are changed on their way out; its golden rows were right."""

    change: Change = field(repr=False)

    def compute(self, graph: str, feeds: Mapping[str, Array]) -> Arrays:
        """Compute, and spoil."""
        return self.change(graph, super().compute(graph, feeds), feeds)


def report(folder: Path, change: Change = lambda _graph, outputs, _feeds: outputs, rows: int = 60) -> Report:
    """A small check with an engine that may be spoilt."""

    def opener(found: Artifact) -> Engine:
        engine = open_engine(found, "cpu")
        return Spoilt(engine.device, engine.providers, engine.fallback, engine.sessions, change)

    return check.check(folder, rows=rows, draws=256, seed=1, opener=opener, lanes=1)


def said(found: Report, kind: str) -> set[str]:
    """What was found of a kind."""
    return {finding.what for finding in found.findings if finding.kind == kind}


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one latent, whose encoder is the posterior."""
    return linear.write(linear.made(1), tmp_path_factory.mktemp("exact"), "exact")


def test_a_sound_model_passes(exact: Path) -> None:
    """Every identity holds, the encoder is calibrated, and there is no gap."""
    found = report(exact)
    assert found.sound
    assert said(found, "failure") == set()
    assert said(found, "advice") == {"not calibrated"}
    assert found.measured is not None
    assert np.abs(found.measured.gap).max() < 0.5
    assert "exact/1 is sound" in found.verdict


def test_the_sandwich_holds_the_exact_evidence(tmp_path: Path) -> None:
    """On average over rows log p(x) lies between the bounds, within their errors."""
    model = linear.made(3)
    found = report(linear.write(model, tmp_path, "three")).measured
    assert found is not None
    below, above = found.upper - found.lower, found.gap
    assert below.mean() > -3 * below.std() / np.sqrt(len(below))
    assert above.mean() == pytest.approx(model.gap(model.sample(1, 0))[0], abs=0.3)


def test_a_committed_model_is_sound() -> None:
    """One that was trained passes too, with whatever advice."""
    assert report(COMMITTED / "tiny" / "1").sound


def test_a_narrow_encoder_is_advised_of(tmp_path: Path) -> None:
    """A scale of three tenths breaks no bound: the model is sound, its encoder too narrow."""
    found = report(linear.write(linear.made(1, stretch=0.3), tmp_path, "narrow"))
    assert found.sound
    assert "the encoder is miscalibrated" in said(found, "advice")
    assert "z0 too narrow" in found.text()


def off_by_a_constant(graph: str, outputs: Arrays, _feeds: Mapping[str, Array]) -> Arrays:
    """log p(x|z) of one graph is 5 nats too great."""
    return outputs | {"log_likelihood": outputs["log_likelihood"] + 5} if graph == "joint" else outputs


def bound_above(graph: str, outputs: Arrays, _feeds: Mapping[str, Array]) -> Arrays:
    """log p(x|z) of the bound is 5 nats too great."""
    return outputs | {"log_likelihood": outputs["log_likelihood"] + 5} if graph == "elbo" else outputs


def draws_otherwise(graph: str, outputs: Arrays, _feeds: Mapping[str, Array]) -> Arrays:
    """What draws rows has five times the noise of what scores them."""
    return outputs | {"scale": outputs["scale"] * 5} if graph == "decoder" else outputs


def looks_around(graph: str, outputs: Arrays, feeds: Mapping[str, Array]) -> Arrays:
    """A row's score depends on how many there are."""
    if graph != "elbo":
        return outputs
    return outputs | {"log_likelihood": outputs["log_likelihood"] + 1e-6 * len(feeds["x"])}


def no_numbers(graph: str, outputs: Arrays, _feeds: Mapping[str, Array]) -> Arrays:
    """The bound overflows."""
    return outputs | {"log_likelihood": outputs["log_likelihood"] * np.nan} if graph == "elbo" else outputs


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (off_by_a_constant, "the graphs contradict one another"),
        (bound_above, "the ELBO lies above log p(x)"),
        (draws_otherwise, "the posterior is another model's"),
        (looks_around, "a row's score depends on its company"),
        (no_numbers, "rows have no score"),
    ],
)
def test_a_broken_model_is_found_out(exact: Path, change: Change, what: str) -> None:
    """Whatever is spoilt, the check names it, and the picture is whole."""
    found = report(exact, change)
    assert what in said(found, "failure")
    assert not found.sound
    assert "BROKEN" in found.verdict
    ElementTree.fromstring(found.picture())


def test_the_same_seed_gives_the_same_report(exact: Path) -> None:
    """To the last byte of the picture."""
    assert report(exact, rows=20).picture() == report(exact, rows=20).picture()


def test_the_picture_escapes_what_a_manifest_says(tmp_path: Path) -> None:
    """A description can't become an element."""
    folder = copied("odd", tmp_path, description="</text><script>\"&'")
    root = ElementTree.fromstring(report(folder, rows=20).picture())
    assert not [element for element in root.iter() if element.tag.endswith("script")]
    assert any("</text><script>" in (element.text or "") for element in root.iter())


def test_shapes_have_words() -> None:
    """Ranks at both ends are of a posterior too narrow, in the middle too wide, at one end shifted."""
    even = (np.arange(100) + 0.5) / 100
    assert shape((1 + np.sign(even - 0.5) * np.abs(2 * even - 1) ** 0.2) / 2) == "too narrow"
    assert shape(0.5 + (even - 0.5) / 4) == "too wide"
    assert shape(even**3) == "shifted"
    assert ticks(-1.0, 1.0) == [-1.0, -0.5, 0.0, 0.5, 1.0]


def test_the_command_prints_a_verdict_and_writes_a_picture(tmp_path: Path) -> None:
    """Status 0 for a sound model; the picture lies where one is."""
    folder = str(COMMITTED / "tiny" / "1")
    done = program("check", folder, "--rows", "20", "--draws", "256", cwd=tmp_path, device="cpu")
    assert done.returncode == 0, done.stderr
    assert "tiny/1 is sound" in done.stdout
    assert "checked 20 of 20 rows" in done.stderr
    ElementTree.parse(tmp_path / "tiny-1-check.svg")


def test_what_can_not_be_read_is_one_line_and_status_2(tmp_path: Path) -> None:
    """No stack for a folder that holds no artifact."""
    done = program("check", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "manifest.json" in done.stderr


def test_wrong_golden_answers_are_a_failure(tmp_path: Path) -> None:
    """Files that are what the manifest says and answer otherwise: broken, not unreadable."""
    folder = copied("wrong", tmp_path)
    found = artifact.read(folder)
    golden = found.golden | {"decoder.mean": found.golden["decoder.mean"] + 1}
    artifact.rewrite(found, {}, {artifact.GOLDEN: artifact.pack(golden)})
    spoilt = check.check(folder, rows=20, draws=256, lanes=1)
    assert not spoilt.sound
    assert "golden rows" in spoilt.text()
    ElementTree.fromstring(spoilt.picture())
