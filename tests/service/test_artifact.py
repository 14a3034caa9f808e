"""The artifact on disk: what is refused, with which reason, and that writing is all or nothing."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service import artifact
from service.errors import ArtifactRefused

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of tiny/1 that may be spoilt."""
    return Path(shutil.copytree(ROOT / "exported_models" / "tiny" / "1", tmp_path / "tiny" / "1"))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest behind its back."""
    path = folder / artifact.MANIFEST
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["tiny", "mnist", "breast-cancer"])
def test_the_committed_artifacts_are_what_they_say(name: str) -> None:
    """Every digest, shape and split holds; the four splits are four."""
    found = artifact.read(ROOT / "exported_models" / name / "1")
    splits = found.manifest.training.splits
    assert set(splits) == {"fit", "validation", "calibration", "test"}
    assert len({split.sha256 for split in splits.values()}) == 4
    assert found.manifest.calibration is not None
    assert found.manifest.calibration.split == splits["calibration"].sha256
    for parity in found.manifest.parity.values():
        assert parity.error <= parity.tolerance


def test_a_table_names_its_columns() -> None:
    """Tables carry their column names and units."""
    features = artifact.read(ROOT / "exported_models" / "breast-cancer" / "1").manifest.features
    assert features is not None
    assert features[0].name == "mean radius"
    assert len(features) == 30


@pytest.mark.parametrize("name", ["elbo.onnx", "golden.npz", "calibration.npz", "config.yaml"])
def test_a_changed_file_is_refused(folder: Path, name: str) -> None:
    """One flipped bit in any file is found before the file is opened."""
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ArtifactRefused, match=f"{name} is not the file that the manifest lists"):
        artifact.read(folder)


def test_a_missing_file_and_a_link_are_refused(folder: Path) -> None:
    """What the manifest lists must lie in the folder itself."""
    (folder / "terms.onnx").rename(folder.parent / "elsewhere")
    with pytest.raises(ArtifactRefused, match=r"terms\.onnx is listed"):
        artifact.read(folder)
    (folder / "terms.onnx").symlink_to(folder.parent / "elsewhere")
    with pytest.raises(ArtifactRefused, match=r"terms\.onnx is listed"):
        artifact.read(folder)


@pytest.mark.parametrize(("listed", "reason"), [(None, "3000000000 bytes, not"), (3 * 10**9, "at most 2,147,483,647")])
def test_a_file_out_of_all_proportion_is_refused_unread(folder: Path, listed: int | None, reason: str) -> None:
    """By its size, whatever the manifest says of it."""
    with (folder / "terms.onnx").open("r+b") as stream:
        stream.truncate(3 * 10**9)  # a hole: it takes no room on the disk
    if listed:
        edit(folder, lambda m: m["files"]["terms.onnx"].update(bytes=listed))
    with pytest.raises(ArtifactRefused, match=rf"terms\.onnx .*{reason}"):
        artifact.read(folder)


def test_arrays_that_unpack_to_gigabytes_are_refused(folder: Path) -> None:
    """By what the archive says of itself, before anything is unpacked."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("encoder.x.npy", b"")
        packed.infolist()[0].file_size = 3 * 10**9
    (folder / "golden.npz").write_bytes(stream.getvalue())
    listed = artifact.describe(folder / "golden.npz").model_dump()
    edit(folder, lambda m: m["files"].update({"golden.npz": listed}))
    with pytest.raises(ArtifactRefused, match=r"golden\.npz unpacks to 3,000,000,000 bytes"):
        artifact.read(folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m["files"]["elbo.onnx"].update(sha256="0" * 64), "the calibration was made with another"),
        (lambda m: m["files"]["encoder.onnx"].update(sha256="0" * 64), "is not the file that the manifest lists"),
        (lambda m: m["files"].pop("decoder.onnx"), "lists no decoder.onnx"),
        (lambda m: m["files"].update({"../x": {"sha256": "0" * 64, "bytes": 1}}), "files"),
        (lambda m: m.pop("family"), "family: Field required"),
        (lambda m: m.update(event_shape=[]), "event_shape"),
        (lambda m: m.update(surprise=1), "surprise"),
        (lambda m: m["golden"]["tolerance"].pop("elbo.kl"), r"golden\.tolerance lacks or adds .*: elbo\.kl"),
        (lambda m: m["golden"]["tolerance"].update(more=1e-5), r"golden\.tolerance lacks or adds .*: more"),
        (lambda m: m["golden"]["tolerance"].update({"elbo.kl": float("inf")}), r"golden\.tolerance\.elbo\.kl"),
        (lambda m: m["golden"].update(rows=7), r"golden\.npz: encoder\.x is uint8 \[8, 8, 8\]"),
        (lambda m: m["parity"].pop("terms.latent_kl"), r"parity lacks or adds .*: terms\.latent_kl"),
        (lambda m: m["parity"]["elbo.kl"].update(error=1.0), r"parity: elbo\.kl is past its own tolerance"),
        (lambda m: m["parity"]["elbo.kl"].update(error=float("nan")), r"parity\.elbo\.kl\.error"),
        (lambda m: m["calibration"].update(n=7, smallest_p=1 / 8), r"calibration\.npz holds"),
        (lambda m: m["calibration"].update(smallest_p=1 / 400), r"smallest_p is not 1/\(n\+1\) of 400"),
        (lambda m: m["calibration"].update(smallest_p=float("nan")), "smallest_p is not"),
        (lambda m: m["calibration"].update(graphs={}), r"the calibration was made with another elbo\.onnx"),
        (lambda m: m["calibration"].update(split=m["training"]["splits"]["test"]["sha256"]), "of other rows"),
        (lambda m: m["calibration"]["graphs"].update({"terms.onnx": "0" * 64}), r"made with another terms\.onnx"),
        (lambda m: m["calibration"]["graphs"].update({"more.onnx": "0" * 64}), r"made with another more\.onnx"),
        (lambda m: m["calibration"].update(validation="0" * 64), "fitted on other rows than the validation split"),
        (lambda m: m["calibration"].update(validation=None), "validation doesn't say on which rows"),
        (lambda m: m["calibration"]["anomaly"].update(score="luck"), r"anomaly\.score is luck"),
        (lambda m: m["calibration"]["scores"].pop("elbo"), "scores lacks elbo"),
        (lambda m: m["calibration"]["scores"].pop("kl"), r"\[400\] for scores\.kl where the manifest says nothing"),
        (lambda m: m["calibration"].update(terms=None), r"for terms\.feature\.centre where the manifest says nothing"),
        (lambda m: m["training"]["splits"].pop("test"), r"training\.splits"),
        (lambda m: m["training"]["splits"].update(test=m["training"]["splits"]["fit"]), "two splits are the same rows"),
        (lambda m: m["support"].update(step=None), "a support of levels"),
        (lambda m: m["support"].update(step=-1), "a support of levels"),
        (lambda m: m["support"].update(kind="real"), "a support of real numbers"),
        (lambda m: m["support"].update(highest=2), "bernoulli has the levels 0 and 1"),
        (lambda m: m.update(base_measure="lebesgue"), "the family bernoulli has"),
        (lambda m: m.update(family="discretised_logistic"), "the family discretised_logistic has"),
        (lambda m: m.update(family="normal"), "the family normal has"),
    ],
)
def test_a_manifest_that_lies_is_refused(folder: Path, change: Callable[[dict[str, Any]], object], reason: str) -> None:
    """A manifest is held to its schema, to itself and to the files, and the reason is one line."""
    edit(folder, change)
    with pytest.raises(ArtifactRefused, match=reason) as refused:
        artifact.read(folder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"not json", b"[1, 2]", b"\xff\xfe"])
def test_a_manifest_that_is_no_manifest_is_refused(folder: Path, content: bytes) -> None:
    """Anything but a JSON object of the schema is refused, not raised."""
    (folder / artifact.MANIFEST).write_bytes(content)
    with pytest.raises(ArtifactRefused):
        artifact.read(folder)


def test_a_model_s_folder_is_refused_with_where_its_versions_are(folder: Path) -> None:
    """Whoever names the model's folder and no version is told what lies in it."""
    with pytest.raises(ArtifactRefused, match=rf"No such file or directory; there is one in {folder.parent.name}/1$"):
        artifact.read(folder.parent)


def test_pickles_are_never_opened(folder: Path) -> None:
    """An npz that holds objects is refused, even where its digest is right."""
    np.savez(folder / "golden.npz", evil=np.array([print], dtype=object))
    described = artifact.describe(folder / "golden.npz").model_dump()
    edit(folder, lambda m: m["files"].update({"golden.npz": described}))
    with pytest.raises(ArtifactRefused, match=r"golden\.npz can't be read as arrays"):
        artifact.read(folder)


@pytest.mark.parametrize(("value", "reason"), [(np.nan, "a finite number"), ("text", "a finite number")])
def test_golden_arrays_are_finite_numbers(folder: Path, value: object, reason: str) -> None:
    """No answer is held to a NaN or to a text, even under a true digest."""
    with np.load(folder / "golden.npz") as archive:
        golden = {name: archive[name] for name in archive.files}
    golden["elbo.kl"] = np.full(golden["elbo.kl"].shape, value)
    (folder / "golden.npz").write_bytes(artifact.pack(golden))
    described = artifact.describe(folder / "golden.npz").model_dump()
    edit(folder, lambda m: m["files"].update({"golden.npz": described}))
    with pytest.raises(ArtifactRefused, match=rf"golden\.npz holds a value that isn't {reason}"):
        artifact.read(folder)


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("scores.kl", lambda _: None, r"nothing for scores\.kl where the manifest says \[400\]"),
        ("scores.kl", lambda a: a[:-1], r"\[399\] for scores\.kl"),
        ("scores.kl", lambda a: a[::-1], r"scores\.kl is not in ascending order"),
        ("scores", lambda a: a[::-1], r"scores is not in ascending order"),
        ("scores.kl", lambda a: a.astype(np.float32), r"scores\.kl is float32"),
        ("scores.kl", lambda a: a + np.nan, "isn't a finite number"),
        ("fitted.typicality.centre", lambda a: a[None], r"\[1\] for fitted\.typicality\.centre"),
        ("fitted.density_of_states.whitening", lambda a: a[:3], r"\[3, 4\] for fitted\.density_of_states\.whitening"),
        ("terms.feature.scale", lambda a: a * 0, r"terms\.feature\.scale is not above 0"),
        ("terms.latent.centre", lambda a: a[:1], r"\[1\] for terms\.latent\.centre"),
        ("surprise", lambda _: np.zeros(3), r"\[3\] for surprise where the manifest says nothing"),
    ],
)
def test_calibration_arrays_that_lie_are_refused(
    folder: Path, name: str, change: Callable[[artifact.Array | None], artifact.Array | None], reason: str
) -> None:
    """Each array that the manifest lists is there, of its shape and dtype, and can be what it is said to be."""
    found = artifact.read(folder)
    assert found.calibration is not None
    arrays = {**found.calibration, name: change(found.calibration.get(name))}
    kept = {key: array for key, array in arrays.items() if array is not None}
    with pytest.raises(ArtifactRefused, match=reason):
        artifact.rewrite(found, {}, {"calibration.npz": artifact.pack(kept)})


def test_a_graph_that_changes_after_it_was_read_is_refused(folder: Path) -> None:
    """The bytes that are opened are hashed, not those that lay there before."""
    found = artifact.read(folder)
    assert found.graph("elbo") == (folder / "elbo.onnx").read_bytes()
    (folder / "elbo.onnx").write_bytes(found.graph("encoder"))
    with pytest.raises(ArtifactRefused, match=r"elbo\.onnx is not the file that the manifest lists"):
        found.graph("elbo")


def test_writing_is_all_or_nothing(folder: Path) -> None:
    """An artifact that doesn't hold together leaves nothing behind, and what was there stays."""
    found = artifact.read(folder)
    with pytest.raises(FileExistsError):
        artifact.write(folder, {}, {})
    with pytest.raises(ArtifactRefused):
        artifact.rewrite(found, {}, {"golden.npz": b"nonsense"})
    assert artifact.read(folder).manifest == found.manifest
    assert [path.name for path in folder.parent.iterdir()] == ["1"]
    changed = artifact.rewrite(found, {"description": "another"}, {})
    assert artifact.read(folder).manifest == changed
    assert changed.description == "another"


def test_the_schema_in_the_docs_is_the_code_s() -> None:
    """docs/manifest.schema.json is generated: python -m service schema > docs/manifest.schema.json."""
    committed = json.loads((ROOT / "docs" / "manifest.schema.json").read_text())
    assert committed == artifact.Manifest.model_json_schema()
