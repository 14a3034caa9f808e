"""Arrays: rows of numbers from .npy, .npz and IDX files; nothing in them is ever unpickled."""

from __future__ import annotations

import io
import math
import zipfile
import zlib

import numpy as np

from service.artifact import Support
from training.part import Unusable
from training.sources.found import REAL, Found, Rows, content, levels
from training.wanted import File

# http://yann.lecun.com/exdb/mnist: two zeros, a type, how many axes; then each axis and the numbers, big-endian.
IDX = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}

# Whatever its byte order, a dtype → the one of ours that holds its values: bool and uint8 are levels, others counts.
OURS = {
    **dict.fromkeys(("bool", "uint8"), "uint8"),
    **dict.fromkeys(("int8", "int16", "uint16", "int32"), "int32"),
    **dict.fromkeys(("uint32", "int64"), "int64"),
    **dict.fromkeys(("float16", "float32", "float64"), "float64"),
}


def read(wanted: File) -> Found:
    """The rows of a file, by what it is: .npz, IDX, or .npy where it is neither."""
    given = content(wanted.path)
    if wanted.array is not None and not zipfile.is_zipfile(io.BytesIO(given)):
        raise Unusable(f"{wanted.path}: `array` names one of an .npz file, and this is none")
    if given[:4] == b"PK\x03\x04":
        rows = _npz(given, wanted)
    elif given[:2] == b"\0\0":
        rows = idx(given, wanted.path)
    else:
        rows = _npy(given, wanted.path)
    if rows.ndim < 2 or len(rows) == 0 or rows[0].size == 0:
        raise Unusable(f"{wanted.path}: rows along the first axis are needed, and at least two axes")
    return _known(_ours(rows, wanted), wanted)


def _npy(given: bytes, path: str) -> Rows:
    try:
        return np.asarray(np.load(io.BytesIO(given), allow_pickle=False))
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise Unusable(f"{path}: not an .npy file of numbers") from error


def _npz(given: bytes, wanted: File) -> Rows:
    """The one array of an archive, or the one that is named."""
    try:
        with np.load(io.BytesIO(given), allow_pickle=False) as archive:
            names = ", ".join(archive.files)
            if wanted.array is None and len(archive.files) != 1:
                raise Unusable(f"{wanted.path}: holds the arrays {names}; say which one with `array`")
            name = archive.files[0] if wanted.array is None else wanted.array
            if name not in archive.files:
                raise Unusable(f"{wanted.path}: holds no array {name!r}; it has {names}")
            return np.asarray(archive[name])
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise Unusable(f"{wanted.path}: not an .npz file of numbers") from error


def idx(given: bytes, path: str) -> Rows:
    """An IDX file's array; Unusable unless it has exactly as many bytes as its head says."""
    kind, axes = (given[2], given[3]) if len(given) >= 4 else (0, 0)
    if kind not in IDX or axes == 0 or len(given) < 4 + 4 * axes:
        raise Unusable(f"{path}: not an IDX file: its head names no type and axes")
    shape = [int(side) for side in np.frombuffer(given, ">u4", axes, 4)]
    wanted = math.prod(shape) * np.dtype(IDX[kind]).itemsize
    found = len(given) - 4 - 4 * axes
    if found != wanted:
        what = "is truncated" if found < wanted else "is too long"
        raise Unusable(f"{path}: {what}: its head says {'×'.join(map(str, shape))}, {wanted} bytes, and it has {found}")
    return np.frombuffer(given, IDX[kind], offset=4 + 4 * axes).reshape(shape)


def _ours(rows: Rows, wanted: File) -> Rows:
    """The same values in a dtype of ours: levels stay uint8, whole numbers become int32 or int64, fractions float64."""
    if rows.dtype.name in OURS:
        return np.asarray(rows, OURS[rows.dtype.name])
    if rows.dtype.name == "uint64":  # in either byte order
        if rows.max() > np.iinfo(np.int64).max:
            raise Unusable(f"{wanted.path}: holds {rows.max()}, more than int64 has room for")
        return rows.astype(np.int64)
    kinds = "booleans and uint8 (levels), other whole numbers (counts) or floats of up to 64 bits (real values)"
    raise Unusable(f"{wanted.path}: holds {rows.dtype}; {kinds} are needed")


def _known(rows: Rows, wanted: File) -> Found:
    """What the dtype says of the values; Unusable where they aren't what it says."""
    if rows.dtype == np.uint8:
        highest = wanted.highest if wanted.highest is not None else max(1, int(rows.max()))
        if rows.max() > highest:
            raise Unusable(f"{wanted.path}: holds the level {rows.max()}, above the highest of {highest}")
        return Found(rows, levels(highest))
    if rows.dtype == np.float64:
        if np.isinf(rows).any():
            raise Unusable(f"{wanted.path}: holds a value that isn't a finite number")
        return Found(rows, REAL)
    support = Support(kind="counts")
    if support.off(rows).any():
        raise Unusable(f"{wanted.path}: holds {rows.min()}; whole numbers other than uint8 are counts, from 0")
    return Found(rows, support)
