"""The story: fit → export → calibrate → serve → score, by the commands that the README shows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from scipy import stats

from tests.kit import ROOT, listening, program, running
from tests.kit import configured as settings
from training import config, data


def training(*arguments: str) -> str:
    """Run `python -m training`, and what it said."""
    command = [sys.executable, "-m", "training", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of artifacts that holds tiny, made from its config."""
    scratch = tmp_path_factory.mktemp("story")
    training("fit", "configs/tiny.yaml", "--runs", str(scratch / "runs"))
    assert (scratch / "runs" / "tiny" / "picture.png").stat().st_size > 10_000
    training("export", str(scratch / "runs" / "tiny"), "--to", str(scratch / "models"))
    assert "400 held-out rows" in training("calibrate", str(scratch / "models" / "tiny" / "1"))
    return scratch / "models"


def test_from_a_digit_to_its_evidence(models: Path, tmp_path: Path) -> None:
    """Held-out digits are served a bound with its error; about α of them are flagged, and of shuffled ones far more.

    The same rows scored without a server give the same bits.
    """
    rows = np.asarray(data.load(config.read(ROOT / "configs" / "tiny.yaml").data).splits["test"])
    np.save(tmp_path / "rows.npy", rows)
    with listening(settings(models)) as (address, _):
        url = f"{address}/v1/models/tiny/score"
        served = httpx.post(url, json={"inputs": rows.tolist()}).raise_for_status().json()
        shuffled = np.random.default_rng(0).permuted(rows.reshape(len(rows), -1), axis=1).reshape(rows.shape)
        spoiled = httpx.post(url, json={"inputs": shuffled.tolist()}).raise_for_status().json()
    flagged = sum(served["anomaly"])
    low, high = stats.betabinom(len(rows), 20, 381).interval(0.9999)  # ⌊401·0.05⌋ = 20
    assert low <= flagged <= high
    assert sum(spoiled["anomaly"]) > len(rows) / 2
    done = program("score", "tiny", str(tmp_path / "rows.npy"), "-o", str(tmp_path / "out.npz"), models=str(models))
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "out.npz") as offline:
        for name in ("elbo", "elbo_error", "log_likelihood", "kl", "p_value"):
            assert np.array_equal(offline[name], np.array(served[name]))


def test_the_example_and_the_pasted_command_run() -> None:
    """What is printed at the start can be pasted, and the example runs against it."""
    with running(models=str(ROOT / "exported_models")) as (process, address):
        example = [sys.executable, "examples/score_a_digit.py", address]
        said = subprocess.run(example, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
        assert "the digit\n  log p(x) ≥ " in said
        assert "anomaly: True" in said
        assert process.stdout
        lines = iter(process.stdout.readline, "")
        pasted = next(line for line in lines if "curl" in line)
        reply = subprocess.run(pasted, shell=True, capture_output=True, text=True, timeout=60, check=True).stdout
        assert '"elbo":[' in reply


def test_the_readme_shows_what_the_service_answers() -> None:
    """Its command, pasted, gives its answer, field by field and to the digits shown."""
    block = re.search(r"```console\n\$ (curl .*)\n([^`]*)```", (ROOT / "README.md").read_text())
    assert block
    command, shown = block.groups()
    with listening(settings(ROOT / "exported_models")) as (address, _):
        here = command.replace("http://127.0.0.1:8000", address)
        done = subprocess.run(here, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    places = iter(re.findall(r"[\d.]+…|[\d.]+", shown))  # digits after the point, in the order of the numbers
    same(json.loads(done.stdout), json.loads(shown.replace("…", "")), places)
    assert not list(places)


def same(answered: object, shown: object, places: Iterator[str]) -> None:
    """Hold an answer to what is shown of it; what ends in … is cut off after its last digit."""
    if isinstance(shown, dict):
        assert isinstance(answered, dict)
        assert list(answered) == list(shown)
        for name in shown:
            same(answered[name], shown[name], places)
    elif isinstance(shown, list):
        assert isinstance(answered, list)
        assert len(answered) == len(shown)
        for one, other in zip(answered, shown, strict=True):
            same(one, other, places)
    elif isinstance(shown, (int, float)) and not isinstance(shown, bool):
        assert isinstance(answered, (int, float))
        digits = next(places)
        unit = 10.0 ** -len(digits.removesuffix("…").partition(".")[2]) if digits.endswith("…") else 0.0
        assert abs(answered - shown) <= unit
    else:
        assert answered == shown


def test_what_the_readme_names_is_there() -> None:
    """Every file and every make target that the README or the docs name exists."""
    makefile = (ROOT / "Makefile").read_text()
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        text = page.read_text()
        for target in re.findall(r"make ([a-z][a-z-]+)", text):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page.name}: make {target}"
        for link in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
