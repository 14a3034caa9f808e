"""The mixture: every kind of request that a soak sends, each with the answer that is due, which is asked for once."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from benchmarks.asks import DATATYPES, JSON, NPY, in_oip
from benchmarks.client import Reply, written
from benchmarks.load import Ask, send
from service import artifact, noise, scoring
from service.artifact import Array, Artifact
from service.engine import Engine, open_engine

NPZ = "application/x-npz"
NAMES = ("tiny", "mnist", "breast-cancer-missing", "diabetes")
LIGHT = 0.001  # seconds: what takes longer comes less often, so that each kind has about its share of the work


@dataclass(frozen=True)
class Case:
    """A request, how often it comes, its status, and the bytes of its answer where those are always the same."""

    name: str
    ask: Ask
    status: int = 200
    weight: float = 1.0
    method: str = "POST"
    same: bool = True
    answer: bytes | None = None
    request: bytes = field(default=b"", repr=False)

    def fault(self, reply: Reply) -> str | None:
        """What is wrong with an answer, if anything."""
        if reply.status != self.status:
            return f"status {reply.status}, not {self.status}: {reply.body[:200]!r}"
        if self.answer is not None and reply.body != self.answer:
            return "another answer than the first"
        return None


def cases(port: int, models: Path) -> list[Case]:
    """Every case, with the answer that it had the first time; SystemExit where that is wrong already."""
    protocol = send(port, Ask("/v2", {}, b""))[0] == 200
    found = list(general())
    for name in NAMES:
        made = artifact.read(max((models / name).iterdir(), key=lambda folder: int(folder.name)))
        found += good(made)
        found += bad(made)
        if protocol:
            found += spoken(made)
        check(port, made, open_engine(made))
    return [first(port, case) for case in found]


def first(port: int, case: Case) -> Case:
    """A case with its request written out, its answer if that is always the same, and its weight by what it costs."""
    found = replace(case, request=written(case.ask, case.method))
    if case.method != "POST":
        return found
    body, started = b"", time.perf_counter()
    for _ in range(2):  # the second time, for what a first one costs is not what it costs
        started = time.perf_counter()
        status, _, body = send(port, case.ask)
        if status != case.status:
            raise SystemExit(f"{case.name}: status {status}, not {case.status}: {body[:300]!r}")
    weight = case.weight * min(1.0, LIGHT / (time.perf_counter() - started))
    return replace(found, weight=weight, answer=body if status == 200 and case.same else None)


def check(port: int, made: Artifact, engine: Engine) -> None:
    """Hold first answers of score, encode and decode to the graphs, run here on rows of their own."""
    x, name = rows(made, 3), made.manifest.name
    bank = noise.bank(1, 16, made.manifest.latent_size)
    exact = engine.compute("elbo", {"x": x, "noise": bank.noise})
    bound = scoring.bound(exact["log_likelihood"], exact["kl"], bank)
    posterior = engine.compute("encoder", {"x": x})
    z = posterior["mean"]
    due: list[tuple[str, dict[str, Any], str, Array]] = [
        ("score", {"inputs": x, "draws": 16, "seed": 1}, "elbo", bound.elbo),
        ("encode", {"inputs": x}, "mean", z),
        ("decode", {"latents": z}, "outputs", engine.compute("decoder", {"z": z})["mean"]),
    ]
    for operation, fields, key, expected in due:
        _, _, body = send(port, Ask(f"/v1/models/{name}/{operation}", {"Content-Type": JSON}, text(fields)))
        if not np.allclose(orjson.loads(body)[key], expected, rtol=1e-6, atol=1e-7):
            raise SystemExit(f"{name}: {operation} answers another {key} than its graph")


# ---------------------------------------------------------------- the cases


def general() -> Iterator[Case]:
    """What needs no model, or has none."""
    for path in ("/livez", "/readyz", "/v1/models", "/v1/models/tiny", "/metrics"):
        yield Case(f"GET {path}", Ask(path, {}, b""), weight=0.3 if path != "/metrics" else 0.03, method="GET")
    yield Case("no such path", Ask("/v1/nothing", {}, b""), 404, 0.2, "GET")
    yield Case("no such model", ask("nobody", "score", {"inputs": [[1]]}), 404, 0.3)
    yield Case("no such operation", ask("tiny", "guess", {"inputs": [[1]]}), 404, 0.2)
    yield Case("wrong method", Ask("/v1/models/tiny/score", {}, b""), 405, 0.2, "GET")


def good(made: Artifact) -> Iterator[Case]:
    """What each operation answers for one model, in each form."""
    name, one, some = made.manifest.name, rows(made, 1), rows(made, 12)
    z = np.random.default_rng(0).normal(size=(5, made.manifest.latent_size)).astype(np.float32)
    alike: Mapping[str, Any] = {"seed": 7}
    for x, often in ((one, 3.0), (some, 1.0)):
        for draws in ({}, {"draws": 1, "seed": 3}):
            yield Case(f"{name} score of {len(x)} {draws}", ask(name, "score", {"inputs": x, **draws}), weight=often)
        yield Case(f"{name} score npy of {len(x)}", npy(f"{name}/score?draws=4", x), weight=often)
    yield Case(f"{name} score npz", ask(name, "score", {"inputs": some}, Accept=NPZ))
    yield Case(f"{name} explain", ask(name, "score", {"inputs": one, "explain": True}))
    yield Case(f"{name} score of 300", npy(f"{name}/score", rows(made, 300)))
    yield Case(f"{name} encode", ask(name, "encode", {"inputs": some, "draws": 2, **alike}))
    yield Case(f"{name} encode npz", npy(f"{name}/encode", some, Accept=NPZ))
    for output in ("mean", "parameters", "sample"):
        yield Case(
            f"{name} decode {output}", ask(name, "decode", {"latents": z, "output": output, **alike}), weight=0.5
        )
    yield Case(f"{name} decode npz", npy(f"{name}/decode", z, Accept=NPZ))
    yield Case(f"{name} reconstruct", ask(name, "reconstruct", {"inputs": one, "draws": 3, **alike}))
    yield Case(f"{name} sample", ask(name, "sample", {"count": 3, **alike}))
    yield Case(f"{name} sample of any seed", ask(name, "sample", {"count": 1}), same=False)
    yield Case(f"{name} evidence", ask(name, "evidence", {"inputs": one, "draws": 64}))
    if made.manifest.missing:
        holed = np.array(one, np.float64)
        holed.reshape(-1)[:3] = np.nan
        missing = {"inputs": nulls(holed), "draws": 2, **alike}
        yield Case(f"{name} impute", ask(name, "impute", missing))
        yield Case(f"{name} score with nulls", ask(name, "score", {"inputs": nulls(holed)}))


def bad(made: Artifact) -> Iterator[Case]:
    """What each model refuses, and how."""
    name, one = made.manifest.name, rows(made, 1)
    path = f"/v1/models/{name}/score"
    yield Case(f"{name} broken JSON", Ask(path, {"Content-Type": JSON}, b'{"inputs": [[1, 2'), 400, 0.5)
    yield Case(f"{name} broken npy", Ask(path, {"Content-Type": NPY}, b"\x93NUMPY\x01\x00nothing"), 400, 0.3)
    yield Case(f"{name} broken gzip", Ask(path, {"Content-Encoding": "gzip"}, b"nothing"), 400, 0.3)
    yield Case(f"{name} wrong shape", ask(name, "score", {"inputs": [[1, 2, 3]]}), 422, 0.5)
    yield Case(f"{name} unknown field", ask(name, "score", {"inputs": one, "drawz": 3}), 422, 0.5)
    yield Case(f"{name} no rows", ask(name, "encode", {"inputs": []}), 422, 0.3)
    yield Case(f"{name} infinite", npy(f"{name}/decode", np.full((1, made.manifest.latent_size), np.inf)), 422, 0.3)
    yield Case(f"{name} too many draws", ask(name, "score", {"inputs": one, "draws": 100_000}), 413, 0.3)
    yield Case(f"{name} no such form", Ask(path, {"Content-Type": "text/plain"}, b"1 2 3"), 415, 0.3)
    yield Case(f"{name} no such answer", ask(name, "score", {"inputs": one}, Accept="text/html"), 406, 0.3)
    yield Case(f"{name} no such version", ask(f"{name}/versions/99", "score", {"inputs": one}), 404, 0.3)


def spoken(made: Artifact) -> Iterator[Case]:
    """The same in the Open Inference Protocol."""
    name, one, some = made.manifest.name, rows(made, 1), rows(made, 12)
    path = f"/v2/models/{name}/infer"
    tensor = {"name": "inputs", "shape": some.shape, "datatype": DATATYPES[some.dtype.name]}
    body = text({"inputs": [{**tensor, "data": some.reshape(-1)}]})
    yield Case(f"{name} v2 binary of 1", in_oip(one, path), weight=3.0)
    yield Case(f"{name} v2 binary of 12", in_oip(some, path))
    yield Case(f"{name} v2 JSON", Ask(path, {}, body))
    yield Case(f"{name} v2 encode", Ask(f"/v2/models/{name}.encode/infer", {}, body))
    yield Case(f"{name} v2 of no such output", Ask(path, {}, body[:-1] + b',"outputs":[{"name":"none"}]}'), 400, 0.3)
    yield Case(f"{name} v2 broken", Ask(path, {}, body[:-2]), 400, 0.3)
    yield Case(f"{name} v2 metadata", Ask(f"/v2/models/{name}", {}, b""), weight=0.3, method="GET")


# ---------------------------------------------------------------- how they are written


def rows(made: Artifact, count: int) -> Array:
    """So many rows of a model's data."""
    x = made.golden["elbo.x"]
    return np.ascontiguousarray(np.nan_to_num(np.resize(x, (count, *x.shape[1:])), nan=0.0))


def nulls(x: Array) -> Any:
    """Nested lists with null where a value is missing."""
    return orjson.loads(text(x))


def text(content: Any) -> bytes:
    """JSON of anything with arrays in it."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def ask(model: str, operation: str, fields: Mapping[str, Any], **headers: str) -> Ask:
    """A POST of JSON."""
    return Ask(f"/v1/models/{model}/{operation}", {"Content-Type": JSON, **headers}, text(dict(fields)))


def npy(path: str, x: Array, **headers: str) -> Ask:
    """A POST of one array."""
    kept = io.BytesIO()
    np.save(kept, x)
    return Ask(f"/v1/models/{path}", {"Content-Type": NPY, **headers}, kept.getvalue())
