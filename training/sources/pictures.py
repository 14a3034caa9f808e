"""Pictures: a folder of image files → rows of levels 0–255, in the order of their names."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from training.part import Unusable
from training.sources.found import Found, Rows, levels, readable
from training.wanted import Folder

MODES = {"grey": "L", "rgb": "RGB"}
GREY = ("1", "L", "LA")  # Pillow's modes without colour
BROKEN = (OSError, ValueError, SyntaxError, NotImplementedError, struct.error, Image.DecompressionBombError)
DEEP = ("I", "F")  # and of more than 8 bits, each with kinds of its own


def read(wanted: Folder) -> Found:
    """Every picture of a folder and of the folders in it; Unusable names the first that isn't like the others."""
    paths = listed(wanted.path)
    mode = MODES[wanted.colour] if wanted.colour else _mode(paths[0])
    first = one(paths[0], mode, wanted)
    rows = np.empty((len(paths), *first.shape), np.uint8)
    for place, path in enumerate(paths):
        picture = one(path, mode, wanted)
        if picture.shape != first.shape:
            theirs, ours = (f"{shape[0]}×{shape[1]}" for shape in (picture.shape, first.shape))
            raise Unusable(f"{path}: is {theirs}, and {paths[0].name} is {ours}; say `size: [height, width]` to resize")
        rows[place] = picture
    if mode == "RGB":
        rows = np.ascontiguousarray(np.moveaxis(rows, -1, 1))
    return Found(rows, levels(255))


def listed(folder: str) -> list[Path]:
    """The files of a folder and its folders whose ending is a picture's, in the order of their names."""
    known = Image.registered_extensions()
    with readable(folder):
        if not Path(folder).is_dir():
            raise Unusable(f"{folder}: is no folder")
        paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in known and path.is_file())
    if not paths:
        raise Unusable(f"{folder}: holds no picture")
    return paths


def one(path: Path, mode: str, wanted: Folder) -> Rows:
    """A picture's levels, (height, width) or (height, width, 3), the way up that its EXIF says."""
    try:
        with Image.open(path) as image:
            if image.mode.startswith(DEEP) or _bits(path) > 8:
                raise Unusable(f"{path}: has levels of more than 8 bits; save it with 8")
            picture = ImageOps.exif_transpose(image).convert(mode)
    except BROKEN as error:
        raise Unusable(f"{path}: not a picture that can be read") from error
    if wanted.size:
        height, width = wanted.size
        picture = picture.resize((width, height), Image.Resampling.BOX)
    return np.asarray(picture, np.uint8)


def _mode(path: Path) -> str:
    """Grey or coloured, as a picture is."""
    try:
        with Image.open(path) as image:
            return "L" if image.mode in GREY else "RGB"
    except BROKEN as error:
        raise Unusable(f"{path}: not a picture that can be read") from error


def _bits(path: Path) -> int:
    """Bits of a level, as a PNG's head says: Pillow cuts coloured ones to 8 in silence; of other files, 8."""
    with path.open("rb") as file:
        head = file.read(25)
    return head[24] if len(head) == 25 and head[:8] == b"\x89PNG\r\n\x1a\n" else 8
