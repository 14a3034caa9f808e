"""The engine: golden rows, devices that are what they say, and the cores that a container grants."""

from __future__ import annotations

import dataclasses
import threading
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import numpy as np
import onnxruntime as ort
import pytest

from service import artifact, engine
from service.artifact import Arrays, Artifact
from service.errors import ArtifactRefused, DeviceUnavailable, EngineFailed

ROOT = Path(__file__).parents[2]
HAS_CUDA = engine.CUDA in ort.get_available_providers()


@pytest.fixture(scope="module")
def tiny() -> Artifact:
    """The committed tiny/1."""
    return artifact.read(ROOT / "exported_models" / "tiny" / "1")


def spoilt(found: Artifact, key: str, off: float) -> Artifact:
    """The artifact with one golden answer moved."""
    golden: Arrays = {**found.golden, key: found.golden[key] + np.asarray(off, found.golden[key].dtype)}
    return dataclasses.replace(found, golden=golden)


@pytest.mark.parametrize(
    "key", ["encoder.mean", "decoder.mean", "elbo.log_likelihood", "elbo.kl", "joint.log_prior", "terms.latent_kl"]
)
def test_an_engine_that_answers_golden_rows_wrong_is_refused(tiny: Artifact, key: str) -> None:
    """Past the manifest's tolerance in any output of any graph the artifact isn't served; within it, it is."""
    tolerance = tiny.manifest.golden.tolerance[key]
    engine.open_engine(spoilt(tiny, key, tolerance / 4))
    with pytest.raises(ArtifactRefused, match=rf"golden rows: {key} is off by"):
        engine.open_engine(spoilt(tiny, key, 3 * tolerance))
    with pytest.raises(ArtifactRefused, match="is off by inf"):
        engine.open_engine(spoilt(tiny, key, np.nan))


def test_a_file_that_is_no_graph_is_refused(tiny: Artifact, tmp_path: Path) -> None:
    """The runtime's own message, with its paths, stays inside."""
    for graph in tiny.manifest.graphs.values():
        (tmp_path / graph.file).write_bytes(b"not a graph")
    with pytest.raises(ArtifactRefused, match="is not a graph that onnxruntime can open") as refused:
        engine.open_engine(dataclasses.replace(tiny, folder=tmp_path))
    assert str(tmp_path) not in str(refused.value)


def test_what_the_runtime_cannot_compute_is_an_engine_failure(tiny: Artifact) -> None:
    """A wrong width is reported as ours, and the session goes on working."""
    opened = engine.open_engine(tiny)
    with pytest.raises(EngineFailed):
        opened.compute("decoder", {"z": np.zeros((1, 99), np.float32)})
    assert len(opened.compute("decoder", {"z": np.zeros((1, 2), np.float32)})["mean"]) == 1


@pytest.mark.skipif(HAS_CUDA, reason="tests what happens without CUDA, and this onnxruntime has it")
def test_cuda_is_strict_and_auto_is_not(tiny: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without CUDA, `cuda` is an error, `auto` is the CPU, and says why where CUDA was to be expected."""
    with pytest.raises(DeviceUnavailable, match="onnxruntime-gpu"):
        engine.open_engine(tiny, "cuda")
    assert engine.open_engine(tiny, "auto").device == "cpu"
    monkeypatch.setattr(engine, "_expected_cuda", lambda: True)
    fallen = engine.open_engine(tiny, "auto")
    assert fallen.providers == [engine.CPU]
    assert fallen.fallback is not None


@pytest.mark.skipif(HAS_CUDA, reason="tests what happens without CUDA, and this onnxruntime has it")
def test_a_session_that_landed_on_the_cpu_is_not_cuda(tiny: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime that lists CUDA and opens on the CPU, as it does without a device, is found out."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: [engine.CUDA, engine.CPU])
    monkeypatch.setattr(ort, "preload_dlls", lambda **_: None, raising=False)
    with pytest.raises(DeviceUnavailable), pytest.warns(UserWarning, match="CUDAExecutionProvider"):
        engine.open_engine(tiny, "cuda")


@pytest.mark.cuda
@pytest.mark.skipif(not HAS_CUDA, reason="needs onnxruntime-gpu and a CUDA device")
@pytest.mark.parametrize("name", ["tiny", "mnist", "breast-cancer"])
def test_cuda_answers_the_golden_rows(name: str) -> None:
    """On a device, every graph is placed there and answers within the manifest's tolerance."""
    opened = engine.open_engine(artifact.read(ROOT / "exported_models" / name / "1"), "cuda")
    assert opened.device == "cuda"
    assert opened.providers[0] == engine.CUDA


@pytest.mark.parametrize(
    ("files", "granted"),
    [
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"cpu.max": "max 100000"}, np.inf),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, np.inf),
        ({}, np.inf),
    ],
)
def test_cores_come_from_the_containers_quota(tmp_path: Path, files: dict[str, str], granted: float) -> None:
    """cgroup v2 and v1 are read; no quota means no bound but the host's."""
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert engine._quota(tmp_path) == granted
    assert engine.cores() >= 1


@pytest.mark.anyio
async def test_lanes_tell_how_long_a_call_has_been_computing() -> None:
    """A stalled engine is seen from outside; an idle one has no age."""
    lanes, gate, entered = engine.Lanes(1), threading.Event(), threading.Event()

    def work() -> bool:
        entered.set()
        return gate.wait(20)

    assert lanes.longest() <= 0
    await lanes.take()
    async with anyio.create_task_group() as group:
        group.start_soon(lanes.run, work)
        await anyio.to_thread.run_sync(partial(entered.wait, 20))
        assert lanes.longest() > 0
        gate.set()
    assert lanes.longest() <= 0
    lanes.close()
