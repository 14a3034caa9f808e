"""python -m service artifacts: what lies on disk, whether it is sound, what differs, and what may go."""

from __future__ import annotations

import doctest
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service import artifact
from service.__main__ import main
from service.inventory import comparison, holdings
from service.operations.calibrations import FEWEST
from tests.kit import COMMITTED, configured, copied, digits, open_house, program

Line = Callable[..., tuple[int, str, str]]


@pytest.fixture
def line(tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Line]:
    """The command line in this process, on a folder that holds tiny/1: status, standard output, standard error."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.setenv("VAE_SERVE_MODELS", str(tiny))
    monkeypatch.setenv("VAE_SERVE_DEVICE", "cpu")

    def run(*arguments: object) -> tuple[int, str, str]:
        status = main(["artifacts", *map(str, arguments)])
        said = capsys.readouterr()
        return status, said.out, said.err

    yield run
    root.handlers[:] = handlers
    root.setLevel(level)


def spoil(folder: Path) -> None:
    """Change a bit of an artifact's graph, which its digest then isn't."""
    path = folder / "elbo.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")


def names(folder: Path) -> list[str]:
    """What is left of a name's versions, hidden folders too."""
    return sorted(path.name for path in (folder / "tiny").iterdir())


@pytest.mark.parametrize("module", [comparison, holdings])
def test_examples_run(module: object) -> None:
    """Those in the docstrings."""
    found = doctest.testmod(module)  # type: ignore[arg-type]
    assert found.attempted
    assert not found.failed


# ---------------------------------------------------------------- list


def test_list_shows_every_version(line: Line, tiny: Path) -> None:
    """Name, version, family, digest, size, calibration, and the one that answers by default: the highest."""
    copied("tiny", tiny, version=2, calibration=None)
    copied("other", tiny)
    status, out, err = line("list")
    assert (status, err) == (0, "")
    head, *rows = [re.split(r"\s{2,}", row) for row in out.splitlines()]
    assert head == ["name", "version", "family", "digest", "size", "calibrated", "default"]
    digest = artifact.describe(tiny / "tiny" / "1" / artifact.MANIFEST).sha256[:12]
    size = sum(path.stat().st_size for path in (tiny / "tiny" / "1").iterdir())
    assert [row[:2] for row in rows] == [["other", "1"], ["tiny", "1"], ["tiny", "2"]]
    assert rows[1] == ["tiny", "1", "bernoulli", digest, f"{size / 1e3:.3g} kB", "by 400 rows"]
    assert (rows[0][-1], rows[2][5:]) == ("default", ["no", "default"])


def test_list_marks_the_pinned_version(line: Line, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the service would have it."""
    copied("tiny", tiny, version=2)
    monkeypatch.setenv("VAE_SERVE_DEFAULT_VERSIONS", "tiny=1")
    rows = line("list", tiny)[1].splitlines()
    assert [row.endswith("default") for row in rows[1:]] == [True, False]


def test_list_says_what_cant_be_read(line: Line, tiny: Path) -> None:
    """In its line, with a status of 1; it is nobody's default."""
    manifest = copied("tiny", tiny, version=2) / artifact.MANIFEST
    manifest.write_text(manifest.read_text().replace('"latent_size": 2', '"latent_size": 0'))
    status, out, _ = line("list")
    first, second = out.splitlines()[1:]
    assert status == 1
    assert first.endswith("default")
    assert "refused: manifest.json: latent_size" in second


def test_a_version_that_says_it_is_another_is_nobodys_default_and_counts_for_none(line: Line, tiny: Path) -> None:
    """As whoever copies a folder makes it: the service refuses it, so what it serves must stay."""
    shutil.copytree(tiny / "tiny" / "1", tiny / "tiny" / "2")
    status, out, _ = line("list")
    first, second = out.splitlines()[1:]
    assert status == 1
    assert first.endswith("default")
    assert "refused: manifest.json says that this is tiny/1" in second
    status, out, _ = line("prune", "--keep", 1, "--yes")
    assert status == 0
    assert names(tiny) == ["1", "2"]
    assert "left     tiny/2: manifest.json says that this is tiny/1" in out


@pytest.mark.anyio
async def test_list_knows_a_calibration_in_the_state(
    line: Line, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was made while serving, by the manifest's digest."""
    async with open_house(configured(tiny, state=tmp_path / "state", calibrate=True)) as house:
        await house.answer("tiny/calibrate", {"inputs": digits(FEWEST).tolist()})
    monkeypatch.setenv("VAE_SERVE_STATE", str(tmp_path / "state"))
    assert f"by {FEWEST} rows, in the state" in line("list")[1]


@pytest.mark.parametrize("work", ["list", "verify", "prune"])
def test_a_folder_without_artifacts_is_one_line(line: Line, tmp_path: Path, work: str) -> None:
    """On standard error, with a status of 2."""
    status, out, err = line(work, tmp_path / "nowhere")
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "no artifacts lie in" in err


# ---------------------------------------------------------------- verify


def test_verify_does_what_the_service_does(line: Line, tiny: Path) -> None:
    """For a folder of artifacts or one of them; a status of 1 where any would be refused, each with the reason."""
    spoil(copied("tiny", tiny, version=2))
    golden = copied("tiny", tiny, version=3)
    found = artifact.read(golden)
    wrong = {**found.golden, "elbo.kl": found.golden["elbo.kl"] + 1}
    artifact.rewrite(found, {}, {artifact.GOLDEN: artifact.pack(wrong)})
    (tiny / "elsewhere").mkdir()
    copied("tiny", tiny, version=4).rename(tiny / "elsewhere" / "4")
    status, out, _ = line("verify")
    said = dict(row.split(": ", 1) for row in out.splitlines())
    assert status == 1
    assert said.pop(f"sound    {tiny}/tiny/1").endswith("calibrated by 400 rows (artifact)")
    assert "elbo.onnx is not the file" in said.pop(f"refused  {tiny}/tiny/2")
    assert "golden rows: elbo.kl is off by 1" in said.pop(f"refused  {tiny}/tiny/3")
    assert "its manifest says tiny/4" in said.pop(f"refused  {tiny}/elsewhere/4")
    assert not said
    assert line("verify", tiny / "tiny" / "1")[0] == 0
    assert line("verify", tiny / "tiny" / "1", tiny / "tiny" / "2")[0] == 1


# ---------------------------------------------------------------- diff


def test_diff_says_what_differs_and_nothing_else(line: Line, tiny: Path) -> None:
    """Figures with their change, the training's config, files; in parts that have a heading."""
    found = artifact.read(tiny / "tiny" / "1").manifest
    training = found.training.model_dump()
    training["held_out"]["elbo"] += 0.5
    training["config"]["optimiser"]["lr"] = 0.5
    copied("tiny", tiny, version=2, training=training, calibration=None, description="Digits again")
    status, out, err = line("diff", "tiny/1", "tiny/2")
    assert (status, err) == (1, "")
    rows = out.splitlines()
    assert rows[0] == "tiny/1 → tiny/2"
    assert [row.rstrip(":") for row in rows[1:] if row[0] != " "] == [
        *("what it is", "held-out figures", "training", "calibration"),
    ]
    assert f"  description: {found.description} → Digits again" in rows
    assert f"  elbo: {found.training.held_out['elbo']:.8g} → {training['held_out']['elbo']:.8g} (+0.5)" in rows
    lr = found.training.config["optimiser"]["lr"]
    assert f"  config.optimiser.lr: {lr:.8g} → 0.5 ({0.5 - lr:+.6g})" in rows
    assert "  n: 400 → nothing" in rows


def test_diff_of_the_same_finds_nothing(line: Line, tiny: Path) -> None:
    """A folder and NAME/VERSION are the same artifact."""
    status, out, _ = line("diff", "tiny/1", tiny / "tiny" / "1")
    assert status == 0
    assert out.splitlines() == ["tiny/1 → tiny/1", "no difference but the name and version"]


def test_diff_of_files_and_of_what_isnt_there(line: Line) -> None:
    """Other graphs are other files, by digest and size; what isn't there is one line."""
    status, out, _ = line("diff", "tiny/1", COMMITTED / "mnist" / "1")
    assert status == 1
    assert re.search(r"^  encoder\.onnx: \w{12}…, \d+ bytes → \w{12}…, \d+ bytes$", out, re.MULTILINE)
    status, out, err = line("diff", "tiny/1", "tiny/9")
    assert (status, out) == (2, "")
    assert "tiny/9 is neither" in err


# ---------------------------------------------------------------- prune


def test_prune_removes_old_versions_and_asks_first(line: Line, tiny: Path) -> None:
    """Without --yes it only says what would go; nothing is left of what went."""
    for version in (2, 3, 10):
        copied("tiny", tiny, version=version)
    status, out, _ = line("prune", "--keep", 2)
    assert status == 0
    assert [row.split(",")[0] for row in out.splitlines()[:2]] == ["would go  tiny/1", "would go  tiny/2"]
    assert "--yes" in out
    assert names(tiny) == ["1", "10", "2", "3"]
    assert line("prune", "--keep", 2, "--yes")[0] == 0
    assert names(tiny) == ["10", "3"]
    assert "nothing to remove" in line("prune", "--keep", 2, "--yes")[1]


def test_prune_leaves_defaults_broken_ones_and_links(
    line: Line, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broken version counts for none of the newest: were it one, nothing that works would be left."""
    for version in (2, 3, 4):
        copied("tiny", tiny, version=version)
    spoil(tiny / "tiny" / "4")
    copied("tiny", tmp_path / "far", version=9)
    (tiny / "linked").symlink_to(tmp_path / "far" / "tiny")
    monkeypatch.setenv("VAE_SERVE_DEFAULT_VERSIONS", "tiny=1")
    status, out, _ = line("prune", "--keep", 1, "--yes")
    assert status == 0
    assert names(tiny) == ["1", "3", "4"]
    assert "left     tiny/4: elbo.onnx is not the file" in out
    assert "left     linked/9: it is reached by a link" in out
    assert (tmp_path / "far" / "tiny" / "9").is_dir()


@pytest.mark.parametrize("keep", ["0", "-1", "all"])
def test_prune_keeps_one_at_the_least(line: Line, tiny: Path, keep: str) -> None:
    """Whatever is asked."""
    with pytest.raises(SystemExit):
        line("prune", f"--keep={keep}", "--yes")
    assert names(tiny) == ["1"]


def test_as_a_program(tiny: Path) -> None:
    """It starts, and says which works there are where none is named."""
    ended = program("artifacts", "list", models=str(tiny), device="cpu")
    assert ended.returncode == 0
    assert "tiny" in ended.stdout
    assert ended.stderr == ""
    assert "list" in program("artifacts").stderr
