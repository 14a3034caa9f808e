"""Buckets: the same answers at a few shapes, from buffers that are made once, on the CPU and (rehearsed) on CUDA."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from service import artifact, works
from service.artifact import Array, Arrays, Artifact, Graph
from service.cost import Cost
from service.engine import CUDA, Bucketed, Engine, Plan, grid, open_engine, opening
from service.engine.cuda import Gate, Runtime, load
from service.engine.grid import Tile
from service.engine.sessions import Algorithms, OnCuda
from service.engine.slot import copy_rows
from service.errors import ArtifactRefused, DeviceUnavailable, EngineFailed, EngineLost
from tests.kit import COMMITTED, PATIENCE, wait_until
from tests.rehearsal import Library, Session, rehearsed

PLAN = Plan(buckets=(4, 16), size=64)
NAMES = ("tiny", "breast-cancer", "breast-cancer-missing", "diabetes", "mnist")
SIZES = ((1, 16), (2, 1), (4, 16), (5, 3), (16, 4), (17, 5), (33, 16), (70, 1), (1, 64), (2, 65), (1, 200))
HAS_CUDA = CUDA in ort.get_available_providers() and Path("/dev/nvidia0").exists()


def read(name: str) -> Artifact:
    """A committed artifact."""
    return artifact.read(COMMITTED / name / "1")


def feeds(found: Artifact, graph: Graph, rows: int, draws: int, seed: int = 0) -> Arrays:
    """Golden rows in some order, and a bank that no artifact was calibrated with."""
    generator = np.random.default_rng([seed, rows, draws])
    given: Arrays = {}
    for name in graph.rows:
        golden = found.golden[f"{graph.name}.{name}"]
        given[name] = golden[generator.integers(0, len(golden), rows)]
        if name in graph.drawn:
            given[name] = np.ascontiguousarray(given[name][:, generator.integers(0, golden.shape[1], draws)])
    if graph.bank:
        given[graph.bank] = generator.normal(size=(draws, found.manifest.latent_size)).astype(np.float32)
    return given


def cut(given: Mapping[str, Array], graph: Graph, places: Sequence[int]) -> tuple[dict[str, list[Array]], Arrays]:
    """The rows as several tickets would have them, each somewhere else in memory, and what they share."""
    pieces = {name: [part.copy() for part in np.split(given[name], places)] for name in graph.rows}
    return pieces, {name: array for name, array in given.items() if name not in graph.rows}


def assert_same(found: Mapping[str, Array], wanted: Mapping[str, Array]) -> None:
    """The same outputs, shapes, dtypes and bits."""
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype)
        assert found[name].tobytes() == array.tobytes(), name


# ---------------------------------------------------------------- on the CPU


@pytest.mark.parametrize("name", NAMES)
def test_buckets_change_no_bit(name: str) -> None:
    """Every graph, at sizes that are padded, exact and cut, along rows and draws, whole and in pieces."""
    found = read(name)
    plain, bucketed = open_engine(found), open_engine(found, "cpu", PLAN)
    assert isinstance(bucketed, Bucketed)
    for graph, (rows, draws) in itertools.product(found.manifest.graphs.values(), SIZES):
        given = feeds(found, graph, rows, draws)
        wanted = plain.compute(graph.name, given)
        assert_same(bucketed.compute(graph.name, given), wanted)
        pieces, shared = cut(given, graph, sorted({0, 1 % rows, rows // 2, rows - 1}))
        assert_same(bucketed.run(graph.name, pieces, shared), wanted)


def test_without_buckets_pieces_are_joined_once() -> None:
    """One piece that lies in a row is not copied at all; several are, once; `compute` gets what is joined."""
    asked: list[Mapping[str, Array]] = []

    class Seeing(Engine):
        def compute(self, graph: str, feeds: Mapping[str, Array]) -> Arrays:
            asked.append(feeds)
            return super().compute(graph, feeds)

    found = read("tiny")
    opened = open_engine(found)
    seeing = Seeing(opened.device, opened.providers, opened.fallback, opened.sessions)
    graph = found.manifest.graphs["elbo"]
    given = feeds(found, graph, 7, 5)
    for places in ((), (3, 3, 6)):
        pieces, shared = cut(given, graph, places)
        assert_same(seeing.run("elbo", pieces, shared), opened.compute("elbo", given))
        assert (asked[-1]["x"] is pieces["x"][0]) == (not places)
        assert asked[-1]["noise"] is shared["noise"]


@pytest.mark.parametrize("name", NAMES)
def test_tiles_change_no_bit(name: str) -> None:
    """Rows that are run a few at a time, across the seams between tickets, have the bits of one run."""
    found = read(name)
    opened = open_engine(found)
    for graph in found.manifest.graphs.values():
        given = feeds(found, graph, 11, 3)
        wanted = opened.compute(graph.name, given)
        for places, step in itertools.product(((), (1, 6, 6)), (1, 4, 11, 12)):
            pieces, shared = cut(given, graph, places)
            assert_same(opened.run(graph.name, pieces, shared, step), wanted)


def test_a_call_is_cut_to_tiles_by_what_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many decoder rows at a time as take a moment, on the CPU; at least a few rows, however many draws."""
    asked: list[int] = []

    class Seeing(Engine):
        def compute(self, graph: str, feeds: Mapping[str, Array]) -> Arrays:
            asked.append(len(feeds["x"]))
            return super().compute(graph, feeds)

    found = read("tiny")
    opened = open_engine(found)
    seeing = Seeing(opened.device, opened.providers, opened.fallback, opened.sessions)
    monkeypatch.setattr(works, "TILE_SECONDS", 1.0)
    size = works.tile(Cost(row=1 / 48), seeing)
    assert size == 48
    for rows, draws, wanted in ((100, 1, [48, 48, 4]), (100, 2, [24] * 4 + [4]), (40, 48, [16, 16, 8]), (5, 64, [5])):
        graph = found.manifest.graphs["elbo"]
        given = feeds(found, graph, rows, draws)
        pieces, shared = cut(given, graph, ())
        asked.clear()
        assert_same(
            works.GraphWork(graph, seeing, size).compute(pieces, shared["noise"], slice(None)),
            opened.compute("elbo", given),
        )
        assert asked == wanted
    assert works.tile(Cost(row=1.0), seeing) == works.TILE_LEAST
    assert works.tile(Cost(row=1e-9), seeing) == works.TILE_MOST


def test_wide_outputs_make_batches_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot's memory is bounded; what a call has more rows for is cut."""
    found = read("tiny")
    monkeypatch.setattr(grid, "SLOT_BYTES", 5_000)
    engine = open_engine(found, "cpu", PLAN)
    assert isinstance(engine, Bucketed)
    assert engine.stages["terms"].grid.size < engine.stages["joint"].grid.size == 64
    given = feeds(found, found.manifest.graphs["terms"], 5, 16)
    assert_same(engine.compute("terms", given), open_engine(found).compute("terms", given))


def test_many_threads_share_a_bucketed_engine() -> None:
    """Each has a slot while it needs one; nobody's rows or banks are another's."""
    found = read("tiny")
    plain, bucketed = open_engine(found), open_engine(found, "cpu", PLAN)
    graphs = [found.manifest.graphs[name] for name in ("elbo", "decoder", "joint")]
    asked = [feeds(found, graph, 1 + seed % 19, 1 + seed % 7, seed) for seed in range(40) for graph in graphs]
    names = [graph.name for _ in range(40) for graph in graphs]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(bucketed.compute, names, asked))
    for name, given, answer in zip(names, asked, answers, strict=True):
        assert_same(answer, plain.compute(name, given))


def test_no_rows_and_no_draws_are_answered() -> None:
    """With arrays that are as empty, and what needs no draws: the runtime itself can't always, and isn't asked."""
    found = read("tiny")
    plain, bucketed = open_engine(found), open_engine(found, "cpu", PLAN)
    for graph, (rows, draws) in itertools.product(found.manifest.graphs.values(), ((0, 3), (3, 0))):
        given = feeds(found, graph, rows, draws)
        some = {name: np.resize(array, (rows or 1, *array.shape[1:])) for name, array in given.items()}
        some |= {name: np.zeros((rows or 1, draws or 1, 2), np.float32) for name in graph.drawn}
        some |= {graph.bank: np.zeros((draws or 1, 2), np.float32)} if graph.bank else {}
        if not rows:
            some |= {name: found.golden[f"{graph.name}.{name}"][:1] for name in graph.rows if name not in graph.drawn}
        wanted = plain.compute(graph.name, some)
        cut_to = {name: array[:rows, :draws] if graph.outputs[name] == "nk" else array[:rows] for name, array in
                  wanted.items()}  # fmt: skip
        assert_same(bucketed.compute(graph.name, given), cut_to)


@pytest.mark.parametrize(
    ("graph", "given"),
    [
        ("decoder", {"z": np.zeros((1, 99), np.float32)}),
        ("decoder", {"z": np.zeros((1, 2), np.float64)}),
        ("decoder", {"x": np.zeros((1, 2), np.float32)}),
        ("elbo", {"x": np.zeros((1, 8, 8), np.uint8)}),
        ("joint", {"x": np.zeros((2, 8, 8), np.uint8), "z": np.zeros((1, 3, 2), np.float32)}),
    ],
)
def test_what_a_graph_does_not_take_is_an_engine_failure(graph: str, given: Arrays) -> None:
    """As it is without buckets; and the engine goes on."""
    bucketed = open_engine(read("tiny"), "cpu", PLAN)
    with pytest.raises(EngineFailed, match=graph):
        bucketed.compute(graph, given)
    assert len(bucketed.compute("decoder", {"z": np.zeros((1, 2), np.float32)})["mean"]) == 1
    assert bucketed.lost is None


def test_every_bucket_is_held_to_the_golden_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shape that answers wrong is found before anything is served, though others answer right."""
    found = read("tiny")

    class Wrong(ort.InferenceSession):  # type: ignore[misc]  # it has no types
        def run_with_iobinding(self, binding: ort.IOBinding, options: ort.RunOptions | None = None) -> None:
            super().run_with_iobinding(binding, options)
            if binding.get_outputs()[0].shape()[0] == 16:
                binding.get_outputs()[0].numpy()[...] += 1

    monkeypatch.setattr(ort, "InferenceSession", Wrong)
    open_engine(found, "cpu", dataclasses.replace(PLAN, buckets=(4,), size=15))
    with pytest.raises(ArtifactRefused, match="is off by 1"):
        open_engine(found, "cpu", PLAN)


# ---------------------------------------------------------------- on CUDA, rehearsed


def never(_: Graph, __: OnCuda, ___: str) -> None:
    """No run fails."""


@pytest.fixture
def stage() -> Iterator[tuple[Bucketed, Library, dict[str, Session]]]:
    """tiny, opened on a device that is a part of this process."""
    with rehearsed(never) as (library, opened):
        engine = open_engine(read("tiny"), "cuda", PLAN)
        assert isinstance(engine, Bucketed)
        for session in opened.values():
            session.runs.clear()
        yield engine, library, opened


@pytest.mark.parametrize("name", NAMES[:-1])  # of the last the rows are large, and no other code is run
def test_what_goes_to_a_device_and_back_changes_no_bit(name: str) -> None:
    """Through pinned memory, the device's memory and captured graphs; banks of the calibrated draws and others."""
    found = read(name)
    plain = open_engine(found)
    with rehearsed(never):
        engine = open_engine(found, "cuda", PLAN)
        assert (engine.device, engine.providers[0], engine.lost) == ("cuda", CUDA, None)
        for graph, (rows, draws) in itertools.product(found.manifest.graphs.values(), SIZES):
            for seed in (0, 1):
                given = feeds(found, graph, rows, draws, seed)
                assert_same(engine.compute(graph.name, given), plain.compute(graph.name, given))


def test_each_bucket_of_each_slot_is_one_graph_and_one_thread_runs_them(
    stage: tuple[Bucketed, Library, dict[str, Session]],
) -> None:
    """At the calibrated draws a call replays the graph of its bucket and slot; at other draws it is a plain run."""
    engine, _, opened = stage
    found = read("tiny")
    graph = found.manifest.graphs["elbo"]
    for rows, draws in ((1, 16), (3, 16), (4, 16), (3, 5), (1, 16)):
        engine.compute("elbo", feeds(found, graph, rows, draws))
    ids = [graph_id for graph_id, _ in opened["elbo"].runs]
    assert ids[0] == ids[4] != ids[1] == ids[2]
    assert ids[3] == "-1"
    assert {int(graph_id) for graph_id in ids[:3]} <= set(range(1, 5))  # two buckets of tiny, in two slots
    assert len({thread for session in opened.values() for _, thread in session.runs}) == 1


def test_a_bank_goes_to_the_device_when_it_changes(stage: tuple[Bucketed, Library, dict[str, Session]]) -> None:
    """Told by its values: the same numbers elsewhere are the same bank, and one changed in place is another."""
    engine, library, _ = stage
    found = read("tiny")
    plain = open_engine(found)
    given = feeds(found, found.manifest.graphs["elbo"], 4, 16)
    rows = given["x"].nbytes

    def sent() -> int:
        before = library.up
        assert_same(engine.compute("elbo", given), plain.compute("elbo", given))
        return library.up - before

    assert sent() == rows + given["noise"].nbytes
    given["noise"] = given["noise"].copy()
    assert sent() == rows
    given["noise"][3, 1] += 1
    assert sent() == rows + given["noise"].nbytes


def test_a_bank_whose_copy_failed_is_sent_again(stage: tuple[Bucketed, Library, dict[str, Session]]) -> None:
    """The failure is that call's alone."""
    engine, library, _ = stage
    found = read("tiny")
    given = feeds(found, found.manifest.graphs["elbo"], 4, 16)
    library.refused = 1
    with pytest.raises(EngineFailed, match="CUDA error 2 from cudaMemcpyAsync"):
        engine.compute("elbo", given)
    assert_same(engine.compute("elbo", given), open_engine(found).compute("elbo", given))


def test_the_next_batch_is_copied_while_one_is_computed(stage: tuple[Bucketed, Library, dict[str, Session]]) -> None:
    """A second batch is on the device before the first is done; a third waits for a slot, and all are answered."""
    engine, library, opened = stage
    found = read("tiny")
    plain = open_engine(found)
    asked = [feeds(found, found.manifest.graphs["elbo"], rows, 16) for rows in (1, 2, 3)]
    held, goes = threading.Event(), threading.Event()

    def wait(_: str) -> None:
        held.set()
        assert goes.wait(PATIENCE)

    opened["elbo"].before = wait
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(engine.compute, "elbo", asked[0])
        assert held.wait(PATIENCE)
        before = library.up
        others = [pool.submit(engine.compute, "elbo", given) for given in asked[1:]]
        wait_until(lambda: library.up > before)
        assert not first.done()
        assert len(opened["elbo"].runs) == 1
        goes.set()
        for call, given in zip([first, *others], asked, strict=True):
            assert_same(call.result(PATIENCE), plain.compute("elbo", given))


@pytest.mark.parametrize("refused", ["elbo", "joint"])
def test_a_graph_that_cannot_be_captured_runs_plainly(refused: str, caplog: pytest.LogCaptureFixture) -> None:
    """That one alone, with a line that says so; its answers are the same."""

    def refuses(graph: Graph, way: OnCuda, graph_id: str) -> Exception | None:
        fails = graph.name == refused and way.graphs and graph_id == "3"
        return RuntimeError("operation not permitted when stream is capturing") if fails else None

    found = read("tiny")
    with rehearsed(refuses) as (_, opened), caplog.at_level(logging.WARNING):
        engine = open_engine(found, "cuda", PLAN)
        assert [name for name, session in opened.items() if not session.way.graphs] == [refused]
        assert [name for name, session in opened.items() if session.way.shares] == [refused]
        opened[refused].runs.clear()
        given = feeds(found, found.manifest.graphs[refused], 3, 16)
        assert_same(engine.compute(refused, given), open_engine(found).compute(refused, given))
        assert [graph_id for graph_id, _ in opened[refused].runs] == ["-1"]
    (line,) = caplog.messages
    assert line.startswith(f"{refused}.onnx runs without CUDA graphs: ")
    assert "stream is capturing" in line


def test_a_captured_graph_that_does_not_read_its_buffers_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    """What a replay answers is held to the golden rows, captured on others; the graph then runs plainly."""
    found = read("tiny")
    with rehearsed(never, stale="decoder") as (_, opened), caplog.at_level(logging.WARNING):
        engine = open_engine(found, "cuda", PLAN)
        assert not opened["decoder"].way.graphs
        given = feeds(found, found.manifest.graphs["decoder"], 3, 1)
        assert_same(engine.compute("decoder", given), open_engine(found).compute("decoder", given))
    (line,) = caplog.messages
    assert line.startswith("decoder.onnx runs without CUDA graphs: ")
    assert "is off by" in line


def test_without_cuda_graphs_or_buckets_nothing_is_captured() -> None:
    """Each is switched off by its setting."""
    found = read("tiny")
    with rehearsed(never) as (_, opened):
        open_engine(found, "cuda", dataclasses.replace(PLAN, graphs=False))
        assert {graph_id for session in opened.values() for graph_id, _ in session.runs} == {"-1"}
        assert all(session.way.shares for session in opened.values())
        engine = open_engine(found, "cuda", Plan(buckets="off"))
        assert not isinstance(engine, Bucketed)
        assert engine.device == "cuda"
        assert not any(session.way.graphs for session in opened.values())


def test_an_error_that_stays_is_the_end_of_the_device() -> None:
    """Of two failures alike, the one after which the device answers is the rows' alone."""
    failing: list[Exception] = []
    with rehearsed(lambda *_: failing[0] if failing else None) as (library, _):
        engine = open_engine(read("tiny"), "cuda", PLAN)
        given = {"z": np.zeros((1, 2), np.float32)}
        failing.append(RuntimeError("CUDA failure 2: out of memory"))
        library.once = 2
        with pytest.raises(EngineFailed, match="out of memory") as told:
            engine.compute("decoder", given)
        assert not isinstance(told.value, EngineLost)
        assert engine.lost is None
        failing.clear()
        assert len(engine.compute("decoder", given)["mean"]) == 1
        library.sticky = 700
        with pytest.raises(EngineLost, match="error 700"):
            engine.compute("decoder", given)
        assert "must be restarted" in (engine.lost or "")


def test_a_device_that_is_lost_while_a_model_is_opened_is_no_fault_of_the_artifact() -> None:
    """It isn't refused, and no other way is tried: the service can't go on."""
    with rehearsed(lambda *_: RuntimeError("CUDA failure 719")) as (library, _):
        library.sticky = 719
        with pytest.raises(DeviceUnavailable, match="error 719"):
            open_engine(read("tiny"), "cuda", PLAN)


def test_an_engine_that_is_put_away_gives_its_memory_back() -> None:
    """Pinned memory and the device's, both."""
    with rehearsed(never) as (library, _):
        engine = open_engine(read("tiny"), "cuda", PLAN)
        assert engine.device == "cuda"
        assert library.blocks
        del engine
        gc.collect()
        assert not library.blocks


# ---------------------------------------------------------------- its parts


def test_the_way_to_choose_convolutions_is_the_fastest_one() -> None:
    """Each is timed; where there is no convolution nothing is."""
    times: dict[Algorithms, float] = {"HEURISTIC": 3.0, "EXHAUSTIVE": 1.0, "DEFAULT": 2.0}
    assert opening.fastest(lambda algorithms: times[algorithms]) == "EXHAUSTIVE"
    asked: list[str] = []
    assert opening.fastest(lambda algorithms: asked.append(algorithms)) == "HEURISTIC"
    assert len(asked) == 1


def test_who_must_be_alone_waits_for_the_others_and_holds_newcomers() -> None:
    """A capture begins when the last copy has ended, and the next copy begins when the capture has."""
    gate = Gate()
    order: list[str] = []
    captures, waits = threading.Event(), threading.Event()

    def alone() -> None:
        captures.set()
        with gate.alone():
            order.append("alone")
            assert waits.wait(PATIENCE)

    def late() -> None:
        with gate.together():
            order.append("late")

    with ThreadPoolExecutor(2) as pool:
        with gate.together(), gate.together():
            capturing = pool.submit(alone)
            assert captures.wait(PATIENCE)
            order.append("together")
        newcomer = pool.submit(late)
        waits.set()
        capturing.result(PATIENCE)
        newcomer.result(PATIENCE)
    assert order[0] == "together"
    assert sorted(order[1:]) == ["alone", "late"]


def test_a_call_that_fails_says_which() -> None:
    """With CUDA's own number."""
    library = Library()
    runtime = Runtime(library)
    library.sticky = 46
    with pytest.raises(RuntimeError, match="CUDA error 46 from cudaMalloc"):
        runtime.memory(16)


def test_the_plan_is_bounded_by_the_batch() -> None:
    """No bucket is larger than a batch may be: at sixteen draws a row, a sixteenth of it."""
    assert Plan(size=100).rows("cuda") == (1, 4, 16, 64)
    assert Plan(buckets="off").rows("cuda") is None
    with rehearsed(never):
        engine = open_engine(read("tiny"), "cuda", Plan(size=64))
    assert isinstance(engine, Bucketed)
    assert engine.stages["encoder"].grid.buckets(1) == (1, 4, 16, 64)
    assert engine.stages["elbo"].grid.buckets(16) == (1, 4)


@pytest.mark.parametrize("drawn", [False, True])
def test_padding_is_rows_and_draws_of_data(drawn: bool) -> None:
    """Whatever the buffer held before: the last row over again, and in it the last draw."""
    parts = [np.arange(12.0).reshape(2, 3, 2), np.arange(12.0, 18.0).reshape(1, 3, 2)]
    view = np.full((5, 4 if drawn else 3, 2), np.nan)
    copy_rows(view, parts, Tile(slice(1, 3), slice(1, 3), (5, 4)), drawn=drawn)
    rows = np.concatenate(parts)[1:3]
    wanted = rows[:, [1, 2, 2, 2]] if drawn else rows
    assert np.array_equal(view, wanted[[0, 1, 1, 1, 1]])


# ---------------------------------------------------------------- on CUDA

on_cuda = pytest.mark.skipif(not HAS_CUDA, reason="needs onnxruntime-gpu and a CUDA device")


@pytest.mark.cuda
@on_cuda
@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_a_device_answers_within_the_tolerance_at_every_size(name: str, graphs: bool) -> None:
    """Captured or not, at the calibrated draws and others; and the same bits from the same bucket."""
    found = read(name)
    plain, engine = open_engine(found), open_engine(found, "cuda", dataclasses.replace(PLAN, graphs=graphs))
    for graph, (rows, draws) in itertools.product(found.manifest.graphs.values(), SIZES):
        given = feeds(found, graph, rows, draws)
        wanted, answers = plain.compute(graph.name, given), engine.compute(graph.name, given)
        assert_same(engine.compute(graph.name, given), answers)
        for output, array in wanted.items():
            stated = found.manifest.golden.tolerance[f"{graph.name}.{output}"]
            scale = max(1.0, float(np.abs(found.golden[f"{graph.name}.{output}"]).max()))
            assert np.all(np.abs(answers[output] - array) <= 4 * stated * np.maximum(1.0, np.abs(array) / scale))


@pytest.mark.cuda
@on_cuda
def test_memory_comes_and_goes_on_a_device() -> None:
    """What goes up comes down, through a stream, from pinned memory."""
    runtime = load()
    block, stream = runtime.memory(1 << 20), runtime.stream()
    sent, back = runtime.pinned(1 << 20), runtime.pinned(1 << 20)
    sent[:] = np.random.default_rng(0).integers(0, 256, len(sent))
    runtime.copy(block.address, sent.ctypes.data, len(sent), 1, stream)
    runtime.copy(back.ctypes.data, block.address, len(back), 2, stream)
    runtime.wait(stream)
    assert np.array_equal(sent, back)
    assert runtime.lost() is None


@pytest.mark.cuda
@on_cuda
def test_a_model_is_opened_while_another_computes_on_a_device() -> None:
    """Captures and calls don't spoil one another."""
    found = read("mnist")
    engine = open_engine(found, "cuda", PLAN)
    given = feeds(found, found.manifest.graphs["elbo"], 4, 16)
    wanted = engine.compute("elbo", given)
    stop = threading.Event()

    def ask() -> int:
        count = 0
        while not stop.is_set():
            assert_same(engine.compute("elbo", given), wanted)
            count += 1
        return count

    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask) for _ in range(2)]
        try:
            assert isinstance(open_engine(read("tiny"), "cuda", PLAN), Bucketed)
        finally:
            stop.set()
        assert all(calls.result(PATIENCE) for calls in asking)
