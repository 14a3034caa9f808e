"""Look: what a file or folder holds, as a table, and a run's config to paste. Fits nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from training import data, sources
from training.config import Column, Unusable
from training.sources import cells, roles
from training.sources.found import Found, Rows
from training.wanted import File, Folder, Table

TABLES = (".csv", ".tsv", ".txt", ".parquet", ".pq")
SOURCE = "where the rows come from"
FEW_ROWS = 2_000
LARGE = 32  # pixels a side


@dataclass(frozen=True, slots=True)
class Seen:
    """What there is to show: a title, lines of cells under their heads, and a run as plain values."""

    title: str
    heads: tuple[str, ...]
    lines: Sequence[tuple[str, ...]]
    run: dict[str, Any]

    @property
    def config(self) -> str:
        """The run as YAML."""
        return yaml.safe_dump(self.run, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)


def look(path: Path) -> Seen:
    """What a path holds, by its ending; Unusable where it is nothing that can be read."""
    name = re.sub(r"[^a-z0-9]+", "-", path.name.partition(".")[0].lower()).strip("-")[:64] or "mine"
    if any(path.name.lower().removesuffix(".gz").endswith(ending) for ending in TABLES):
        return _table(path, name)
    wanted = Folder(name="folder", path=str(path), source=SOURCE) if path.is_dir() else _file(path)
    return _numbers(wanted, sources.read(wanted), name)


def _file(path: Path) -> File:
    return File(name="file", path=str(path), source=SOURCE)


def _table(path: Path, name: str) -> Seen:
    """The guess for each column, and a run that says them all."""
    wanted = Table(name="table", path=str(path), source=SOURCE)
    found = cells.read(wanted)
    guesses = roles.every(found)
    lines = [
        (column, _role(guess.column), guess.why, str(guess.different), str(guess.absent), _example(of))
        for column, guess, of in zip(found.names, guesses, found.columns, strict=True)
    ]
    columns = {column: _said(guess.column) for column, guess in zip(found.names, guesses, strict=True)}
    kept = [guess for guess in guesses if guess.column.role != "skip"]
    if not kept:
        raise Unusable(f"{path}: no column looks like anything that could be modelled")
    absent = any(guess.absent for guess in kept)
    width = 32 if len(found.places) < FEW_ROWS else 128
    run = {
        "name": name,
        "data": {"name": "table", "path": str(path), "source": SOURCE, "columns": columns},
        **_networks({"kind": "mlp", "sizes": [width]}, {"kind": "mlp", "sizes": [width]}, max(2, len(kept) // 2)),
        "likelihood": {"family": "mixed"},
        **({"missing": {}} if absent else {}),
    }
    title = f"{path}: {len(found.places)} rows, {len(kept)} columns of {len(found.names)} to model"
    return Seen(title, ("column", "role", "why", "different", "missing", "holds"), lines, run)


def _numbers(wanted: File | Folder, found: Found, name: str) -> Seen:
    """Shape and values of rows that need no roles, and a run for them."""
    shape = found.rows.shape[1:]
    repeats = len(found.rows) - len(data.distinct(found.rows))
    lines = [
        ("rows", f"{len(found.rows)}, of which {repeats} are repeats and are left out"),
        ("shape of one", "×".join(map(str, shape))),
        ("dtype", found.rows.dtype.name),
        ("values", _between(found.rows)),
        ("taken for", found.support.kind),
    ]
    family = {"levels": "discretised_logistic", "counts": "negative_binomial"}.get(found.support.kind, "normal")
    if found.support.kind == "levels" and found.support.highest == 1:
        family = "bernoulli"
    run = {
        "name": name,
        "data": wanted.model_dump(exclude_defaults=True),
        **_networks(*_shaped(shape, found.support.kind), 16 if len(shape) > 1 else max(2, min(16, shape[0] // 2))),
        "likelihood": {"family": family},
        **({"missing": {}} if _holes(found.rows) else {}),
    }
    return Seen(str(wanted.path), ("", ""), lines, run)


def _holes(rows: Rows) -> int:
    """How many values are missing."""
    return int(np.isnan(rows).sum()) if rows.dtype.kind == "f" else 0


def _between(rows: Rows) -> str:
    """From which value to which."""
    holes = _holes(rows)
    if holes == rows.size:
        raise Unusable("every value is missing")
    said = f"{np.nanmin(rows):g} to {np.nanmax(rows):g}"
    return f"{said}, and {holes} of {rows.size} are missing" if holes else said


def _networks(encoder: dict[str, Any], decoder: dict[str, Any], latent_size: int) -> dict[str, Any]:
    return {"encoder": encoder, "decoder": decoder, "latent_size": min(16, latent_size)}


def _shaped(shape: tuple[int, ...], kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Convolutions where sides can be halved twice, of pictures or of long windows; dense layers for all else."""
    if len(shape) == 2 and kind != "levels" and shape[1] >= 4 * shape[0] and shape[1] % 4 == 0:
        kinds = "conv1d"
    elif len(shape) in (2, 3) and all(side % 4 == 0 for side in shape[-2:]):
        kinds = "residual" if min(shape[-2:]) >= LARGE else "conv"
    else:
        return {"kind": "mlp", "sizes": [128]}, {"kind": "mlp", "sizes": [128]}
    return {"kind": kinds, "sizes": [16, 32], "dense": 96}, {"kind": kinds, "sizes": [32, 16], "dense": 96}


def _role(column: Column) -> str:
    return f"{column.role}, {column.transform}" if column.transform else column.role


def _said(column: Column) -> Any:
    """A column as a config says it: its role alone, where that is all."""
    said = column.model_dump(exclude_none=True)
    return said["role"] if len(said) == 1 else said


def _example(of: list[str | None], most: int = 3) -> str:
    """The first few values."""
    there = list(dict.fromkeys(cell for cell in of if cell is not None))
    return ", ".join(cell[:20] for cell in there[:most]) + (", …" if len(there) > most else "")
