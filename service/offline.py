"""Offline: the service's own operations on files, without a server. The same operations, so the same numbers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from service import models, operations
from service.artifact import Array
from service.engine import open_engine
from service.errors import Malformed, Refused, Unknown
from service.http import evidence, exchange, scores, wire
from service.http.exchange import Fields
from service.http.wire import Body
from service.lanes import Lanes, cores
from service.models import Model, Workshop
from service.settings import Settings


def score(settings: Settings, name: str, rows: Path, **asked: Any) -> dict[str, Any]:
    """Score an npy file's rows with a model: NAME or NAME/VERSION. The answer is the wire's, by the same names."""
    fields = _checked(scores.Score, asked)

    async def work(model: Model, inputs: Array) -> dict[str, Any]:
        return scores.on_the_wire(await operations.score(model, inputs, errand=operations.Errand(), **fields))

    return _answered(settings, name, rows, work)


def measure(settings: Settings, name: str, rows: Path, **asked: Any) -> dict[str, Any]:
    """The evidence of an npy file's rows, likewise."""
    fields = _checked(evidence.Asked, asked)

    async def work(model: Model, inputs: Array) -> dict[str, Any]:
        return evidence.on_the_wire(await operations.evidence_of(model, inputs, errand=operations.Errand(), **fields))

    return _answered(settings, name, rows, work)


def _checked(fields: type[Fields], asked: dict[str, Any]) -> dict[str, Any]:
    """What was asked, in the wire's ranges; what wasn't is left to the operation's defaults."""
    given = {name: value for name, value in asked.items() if value is not None}
    return exchange.checked(fields, Body(given, None), None).model_dump()


def _answered(
    settings: Settings, name: str, rows: Path, work: Callable[[Model, Array], Awaitable[dict[str, Any]]]
) -> dict[str, Any]:
    folder, inputs = _folder(settings.models, name), _read(rows)
    workshop = Workshop(partial(open_engine, device=settings.device), Lanes(settings.lanes or cores()), settings.batch)

    async def answer() -> dict[str, Any]:
        async with models.open_one(folder, workshop) as model:
            return {"model": model.manifest.name, "version": model.manifest.version, **await work(model, inputs)}

    return asyncio.run(answer())


def save(answer: dict[str, Any], out: Path) -> None:
    """Write an answer as npz, as the service would send it."""
    try:
        out.write_bytes(wire.write(wire.NPZ, answer))
    except OSError as error:
        raise Refused(f"{out} can't be written: {error.strerror}") from None


def summary(answer: dict[str, Any]) -> str:
    """An answer in a few lines for a person."""
    return _measured(answer) if "log_evidence" in answer else _scored(answer)


def _measured(answer: dict[str, Any]) -> str:
    flags = answer["reliable"]
    lines = [f"{len(flags)} rows measured by {answer['model']}/{answer['version']}, in nats:"]
    for name in ("log_evidence", "elbo", "gap"):
        values = np.asarray(answer[name])[np.isfinite(answer[name])]
        spread = np.percentile(values, (0, 50, 100)) if values.size else np.full(3, np.nan)
        lines.append("  {:12s}  least {:.2f}   median {:.2f}   greatest {:.2f}".format(name, *spread))
    lines.append(f"  reliable      {sum(flags)} of {len(flags)} rows")
    return "\n".join(lines)


def _scored(answer: dict[str, Any]) -> str:
    elbo, flags = answer["elbo"], answer["anomaly"]
    lines = [f"{len(elbo)} rows scored by {answer['model']}/{answer['version']}, in nats:"]
    spread = np.nanpercentile(elbo, (0, 50, 100))
    lines.append("  elbo     least {:.2f}   median {:.2f}   greatest {:.2f}".format(*spread))
    if flags is None:
        lines.append(f"  p_value  none: {answer['calibration']['reason']}")
    else:
        told = [flag for flag in flags if flag is not None]
        lines.append(f"  anomaly  {sum(told)} of {len(told)} rows, by {answer['calibration']['score']}")
        if untold := len(flags) - len(told):
            lines.append(
                f"  p_value  none for {untold} rows: {answer['calibration']['reason'] or 'they have no score'}"
            )
    if answer["calibration"]["warning"]:
        lines.append(f"  warning  {answer['calibration']['warning']}")
    return "\n".join(lines)


def _folder(root: Path, name: str) -> Path:
    wanted, _, version = name.partition("/")
    found = sorted(number for other, number in models.find(root) if other == wanted)
    if not found or (version and version not in map(str, found)):
        names = ", ".join(f"{other}/{number}" for other, number in sorted(models.find(root))) or "none"
        raise Unknown(f"there is no model {name!r} in {root}; there is {names}")
    return root / wanted / (version or str(found[-1]))


def _read(path: Path) -> Array:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Malformed(f"{path} can't be read: {error.strerror}") from None
    if content[:6] != b"\x93NUMPY":
        raise Malformed(f"{path} is not an npy file; numpy.save writes one")
    return wire.read_npy(content, "inputs")
