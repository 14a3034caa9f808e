"""Cells: a CSV or Parquet file as columns of text, with None for what is missing. Knows no role."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from training.part import Unusable
from training.sources.found import content
from training.wanted import Table

SEPARATORS = ",;\t|"
PARQUET = b"PAR1"
PADDED = re.compile(r"[+-]?0\d")


@dataclass(frozen=True, slots=True)
class Cells:
    """A table as text. places: what each row is called in a message."""

    names: tuple[str, ...]
    columns: tuple[list[str | None], ...]
    places: Sequence[str]


def read(wanted: Table) -> Cells:
    """A table's cells; Unusable says in one line where the file is no table."""
    given = content(wanted.path)
    lines = _parquet(given, wanted) if given.startswith(PARQUET) else _csv(given, wanted)
    _check_names(lines.names, wanted)
    if not lines.places:
        raise Unusable(f"{wanted.path}: names columns and has no rows")
    return lines


def _csv(given: bytes, wanted: Table) -> Cells:
    """Every line has as many cells as the first; blank lines are passed over."""
    try:
        text = given.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unusable(f"{wanted.path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    separator = wanted.separator or _separator(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    lines: list[list[str]] = []
    numbers: list[int] = []
    try:
        for line in reader:
            if not line or (len(line) == 1 and not line[0].strip() and lines and len(lines[0]) > 1):
                continue
            lines.append(line)
            numbers.append(reader.line_num)
            if len(line) != len(lines[0]):
                raise Unusable(
                    f"{wanted.path}: line {reader.line_num} has {len(line)} cells, and the first has {len(lines[0])}"
                )
    except csv.Error as error:
        raise Unusable(f"{wanted.path}: line {reader.line_num}: {error}") from error
    if not lines:
        raise Unusable(f"{wanted.path}: is empty")
    names = _headed(lines, wanted)
    start = 1 if wanted.header else 0
    absent = frozenset(wanted.absent)
    columns = tuple(
        _there(list(cells), absent, _counted(wanted, name))
        for name, cells in zip(names, zip(*lines[start:], strict=True), strict=False)
    )
    return Cells(names, columns or tuple([] for _ in names), [f"line {number}" for number in numbers[start:]])


def _headed(lines: list[list[str]], wanted: Table) -> tuple[str, ...]:
    """The columns' names: those of the first line, unless the config says that it is a row."""
    if not wanted.header:
        return tuple(map(str, range(len(lines[0]))))
    names = tuple(name.strip() for name in lines[0])
    if all(is_number(name) for name in names):
        raise Unusable(f"{wanted.path}: the first line names no columns, it holds numbers; say `header: false`")
    return names


def _counted(wanted: Table, name: str) -> bool:
    """Whether the config says that a column holds numbers, however they are written."""
    said = wanted.columns.get(name)
    return (said if isinstance(said, str) or said is None else said.role) in ("real", "count")


def _there(cells: Sequence[str | None], absent: frozenset[str], counted: bool = False) -> list[str | None]:
    """Cells, None where they are absent: by their text, and in a column of numbers by the number too.

    >>> _there(["1.5", "NA", "-999.0"], frozenset(["NA", "-999"])), _there(["a", "-999.0"], frozenset(["-999"]))
    (['1.5', None, None], ['a', '-999.0'])
    """
    found = [None if cell is None or (text := cell.strip()) in absent else text for cell in cells]
    read = _number if counted else as_number
    marks = {number for mark in absent if (number := read(mark)) is not None}
    if not marks or (not counted and any(cell is not None and read(cell) is None for cell in found)):
        return found
    return [None if cell is None or read(cell) in marks else cell for cell in found]


def _separator(text: str) -> str:
    """The separator that the first line has most of, a comma where it has none.

    >>> _separator("a;b,c;d")
    ';'
    """
    first = text.lstrip("\r\n").partition("\n")[0]
    return max(SEPARATORS, key=first.count)


def _parquet(given: bytes, wanted: Table) -> Cells:
    """A Parquet file's columns, as they would be written in a CSV."""
    try:
        import polars
    except ImportError as error:
        raise Unusable(f"{wanted.path}: Parquet is read with polars, which isn't installed: pip install polars") from (
            error
        )
    try:
        frame = polars.read_parquet(io.BytesIO(given))
    except (polars.exceptions.PolarsError, OSError) as error:
        raise Unusable(f"{wanted.path}: not a Parquet file that can be read: {' '.join(str(error).split())}") from error
    absent = frozenset(wanted.absent)
    for series in frame:
        if series.dtype.is_nested():
            raise Unusable(f"{wanted.path}: column {series.name} holds {series.dtype}; a cell holds one value")
    columns = tuple(
        _there([_written(value) for value in series.to_list()], absent, _counted(wanted, series.name))
        for series in frame
    )
    return Cells(tuple(frame.columns), columns, [f"row {place}" for place in range(1, frame.height + 1)])


def _written(value: object) -> str | None:
    """A value as text; null and NaN are missing.

    >>> _written(True), _written(2.0), _written(float("nan"))
    ('true', '2.0', None)
    """
    if value is None or value != value:
        return None
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check_names(names: tuple[str, ...], wanted: Table) -> None:
    if "" in names:
        raise Unusable(f"{wanted.path}: column {names.index('')} (from 0) has no name; give it one")
    if repeated := [name for name in names if names.count(name) > 1]:
        raise Unusable(f"{wanted.path}: two columns are named {repeated[0]}; rename one")
    if unknown := [name for name in wanted.columns if name not in names]:
        raise Unusable(f"{wanted.path}: there is no column {unknown[0]!r}; it has {', '.join(names)}")


def numbers_of(cells: Sequence[str | None], otherwise: Callable[[int], float]) -> list[float]:
    """Cells as floats, NaN where missing, and `otherwise` of the place of what is no finite number."""
    found = []
    for place, cell in enumerate(cells):
        number = float("nan") if cell is None else _number(cell)
        found.append(otherwise(place) if number is None else number)
    return found


def as_number(cell: str) -> float | None:
    """A cell as the number that it is, or None where it is text, as 01234 is: a number doesn't begin with a 0 for show.

    >>> as_number("-0.5"), as_number("1234.0"), as_number("01234")
    (-0.5, 1234.0, None)
    """
    return None if PADDED.match(cell) else _number(cell)


def _number(cell: str) -> float | None:
    """A finite number, or None. Python takes 1_000 and inf for numbers; a table doesn't."""
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if "_" not in cell and abs(number) < float("inf") else None


def is_number(cell: str) -> bool:
    """Whether a cell is a finite number, however it begins."""
    return _number(cell) is not None
