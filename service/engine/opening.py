"""Opening: an artifact → an engine where it is wanted, prepared, and held to its golden rows; or an error."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import onnxruntime as ort

from service.artifact import Artifact
from service.engine import cuda, grid, sessions
from service.engine.bucketed import Bucketed
from service.engine.cuda import GATE, Runtime
from service.engine.golden import check_golden
from service.engine.grid import DRAWS, Plan
from service.engine.memory import CUDA
from service.engine.plain import Engine
from service.engine.sessions import Algorithms, OnCuda, open_session
from service.engine.slot import DeviceBuffers, HostBuffers
from service.engine.stage import PAIR, Stage, Uncaptured, tiled
from service.errors import DeviceUnavailable

log = logging.getLogger(__name__)

Device = Literal["auto", "cpu", "cuda"]
Opened = tuple[ort.InferenceSession, Stage]
MakeStage = Callable[[ort.InferenceSession], Stage]
TRIALS = 3  # timed runs of each way to choose convolutions, after one that pays for the choice
SAMPLE = "elbo"  # the graph that stands for its artifact where algorithms are compared: it has both networks


def open_engine(artifact: Artifact, device: Device = "cpu", plan: Plan | None = None) -> Engine:
    """Open an artifact's graphs where they are wanted and hold them to its golden rows; blocks."""
    engine = _on_device(artifact, device, plan or Plan())
    check_golden(engine, artifact)
    return engine


def _on_device(artifact: Artifact, device: Device, plan: Plan) -> Engine:
    """Sessions on the device; `auto` falls back to the CPU and keeps the reason, `cuda` does not."""
    if device == "cpu":
        return _on_cpu(artifact, plan, None)
    try:
        return _on_cuda(artifact, plan)
    except DeviceUnavailable as error:
        if device == "cuda":
            raise
        return _on_cpu(artifact, plan, str(error) if _expected_cuda() else None)


def may_be_cuda(device: Device) -> bool:
    """Whether engines that are wanted there may come to be on CUDA."""
    return device == "cuda" or (device == "auto" and CUDA in ort.get_available_providers())


def _expected_cuda() -> bool:
    """Whether a person would expect CUDA here: its runtime is installed, or a device is in sight."""
    return CUDA in ort.get_available_providers() or Path("/dev/nvidia0").exists()


def _on_cpu(artifact: Artifact, plan: Plan, fallback: str | None) -> Engine:
    graphs = artifact.manifest.graphs
    opened = {name: open_session(graph, artifact.graph(name), None, artifact.weights) for name, graph in graphs.items()}
    providers = opened[SAMPLE].get_providers()
    rows = plan.rows("cpu")
    if rows is None:
        return Engine("cpu", providers, fallback, opened)
    stages = {name: _stage(artifact, name, session, rows=rows, plan=plan) for name, session in opened.items()}
    for stage in stages.values():
        stage.warm(artifact.golden, artifact.manifest.golden.tolerance, _draws(artifact, plan), capture=False)
    return Bucketed("cpu", providers, fallback, opened, stages=stages)


def _on_cuda(artifact: Artifact, plan: Plan) -> Engine:
    _require_cuda()
    runtime = cuda.load()
    try:
        with GATE.together():
            algorithms = _fastest(artifact, plan)
        rows = plan.rows("cuda")
        way = OnCuda(algorithms, memory=plan.memory, shares=True)
        if rows is None:
            with GATE.together():
                graphs = artifact.manifest.graphs
                opened = {
                    name: open_session(graph, artifact.graph(name), way, artifact.weights)
                    for name, graph in graphs.items()
                }
            return Engine("cuda", opened[SAMPLE].get_providers(), None, opened, runtime=runtime)
        return _staged(artifact, plan, rows, way, runtime)
    except DeviceUnavailable:
        raise
    except Exception as error:
        if fault := runtime.lost():  # whatever is tried next in this process would fail too
            raise DeviceUnavailable(fault) from error
        raise


def _staged(artifact: Artifact, plan: Plan, rows: tuple[int, ...], way: OnCuda, runtime: Runtime) -> Bucketed:
    thread = ThreadPoolExecutor(1, thread_name_prefix=f"cuda {artifact.manifest.name}")
    opened: dict[str, ort.InferenceSession] = {}
    stages: dict[str, Stage] = {}
    for name, graph in artifact.manifest.graphs.items():
        stage = partial(_stage, artifact, name, rows=rows, plan=plan, runtime=runtime, thread=thread)
        found = _captured(artifact, name, replace(way, graphs=True, shares=False), plan, stage) if plan.graphs else None
        if isinstance(found, str):
            gc.collect()  # a session that failed to capture must be gone, and its stream with it, before another opens
            if fault := runtime.lost():
                raise DeviceUnavailable(fault)
            log.warning("%s runs without CUDA graphs: %s", graph.file, found)
        if found is None or isinstance(found, str):
            found = _warmed(artifact, name, way, plan, stage)
        opened[name], stages[name] = found
    providers = opened[SAMPLE].get_providers()
    return Bucketed("cuda", providers, None, opened, runtime=runtime, stages=stages)


def _captured(artifact: Artifact, name: str, way: OnCuda, plan: Plan, stage: MakeStage) -> Opened | str:
    """A graph whose buckets are captured, or why they can't be: not all of it is on the device, or CUDA says no."""
    try:
        return _warmed(artifact, name, way, plan, stage)
    except (DeviceUnavailable, Uncaptured) as error:
        return str(error.__cause__ or error) if isinstance(error, DeviceUnavailable) else str(error)


def _warmed(artifact: Artifact, name: str, way: OnCuda, plan: Plan, stage: MakeStage) -> Opened:
    with GATE.together():
        session = open_session(artifact.manifest.graphs[name], artifact.graph(name), way, artifact.weights)
    made = stage(session)
    made.warm(artifact.golden, artifact.manifest.golden.tolerance, _draws(artifact, plan), capture=way.graphs)
    return session, made


def _stage(
    artifact: Artifact,
    name: str,
    session: ort.InferenceSession,
    *,
    rows: tuple[int, ...],
    plan: Plan,
    runtime: Runtime | None = None,
    thread: ThreadPoolExecutor | None = None,
) -> Stage:
    graph = artifact.manifest.graphs[name]
    layout = grid.layout(graph, artifact.golden)
    shapes = grid.grid(graph, layout, rows, plan.size, _draws(artifact, plan))
    if runtime is None:
        return Stage(graph, session, layout, shapes, HostBuffers)
    return Stage(graph, session, layout, shapes, lambda: DeviceBuffers(runtime), slots=PAIR, thread=thread)


def _draws(artifact: Artifact, plan: Plan) -> int:
    """Draws that a graph is prepared for: the calibrated number, unless told otherwise."""
    if plan.draws:
        return plan.draws
    return len(artifact.calibration["noise"]) if artifact.calibration else DRAWS


def _require_cuda() -> None:
    if CUDA not in ort.get_available_providers():
        raise DeviceUnavailable("this onnxruntime was built without CUDA; install onnxruntime-gpu instead")
    ort.preload_dlls(cuda=True, cudnn=True)  # prints what it misses and never raises; the session check below does


def _fastest(artifact: Artifact, plan: Plan) -> Algorithms:
    """How this artifact's convolutions are best chosen, by the time that its largest batch takes."""
    graph, content = artifact.manifest.graphs[SAMPLE], artifact.graph(SAMPLE)
    shape = (max(1, plan.size // _draws(artifact, plan)), _draws(artifact, plan))
    layout = grid.layout(graph, artifact.golden)
    feeds = {name: tiled(artifact.golden[f"{SAMPLE}.{name}"], port.axes, shape) for name, port in layout.inputs.items()}

    def seconds(algorithms: Algorithms) -> float | None:
        session = open_session(graph, content, OnCuda(algorithms, memory=plan.memory), artifact.weights)
        if not sessions.has_convolutions(session):
            return None
        session.run(None, feeds)
        return min(timed(lambda: session.run(None, feeds)) for _ in range(TRIALS))

    return fastest(seconds)


def fastest(seconds: Callable[[Algorithms], float | None]) -> Algorithms:
    """The way to choose that takes the fewest seconds; the first where there is nothing to choose (None)."""
    taken: dict[Algorithms, float] = {}
    for algorithms in get_args(Algorithms):
        if (found := seconds(algorithms)) is None:
            break
        taken[algorithms] = found
    if not taken:
        return "HEURISTIC"
    log.info("convolutions: %s", ", ".join(f"{name} {value * 1e3:.3g} ms" for name, value in taken.items()))
    return min(taken, key=lambda name: taken[name])


def timed(call: Callable[[], object]) -> float:
    """The seconds that a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
