"""Your own files of numbers and folders of pictures: read as they are, and one line where they aren't what they say."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from training import config, data, fit, look, sources
from training.__main__ import app
from training.config import File, Folder, Unusable
from training.own.rows import sample
from training.sources.found import Found

LEVELS = np.random.default_rng(0).integers(0, 256, (24, 8, 12), dtype=np.uint8)


def read(path: Path, **fields: Any) -> Found:
    """A file's or a folder's rows."""
    plain = {"name": "folder" if path.is_dir() else "file", "path": str(path), "source": "a test", **fields}
    return sources.read((Folder if path.is_dir() else File).model_validate(plain))


def idx(rows: NDArray[Any], kind: int) -> bytes:
    """An IDX file as its format has it."""
    head = struct.pack(f">BBBB{rows.ndim}I", 0, 0, kind, rows.ndim, *rows.shape)
    return head + rows.astype(rows.dtype.newbyteorder(">")).tobytes()


@pytest.mark.parametrize(
    ("rows", "kind", "support"),
    [(LEVELS, 8, "levels"), (LEVELS.astype(np.int32), 12, "counts"), (LEVELS / 7.0, 14, "real")],
    ids=["levels", "counts", "real"],
)
def test_idx_is_read_gzipped_or_not(rows: NDArray[Any], kind: int, support: str, tmp_path: Path) -> None:
    """Big-endian numbers become ours, and their type says what they are."""
    plain, zipped = tmp_path / "rows-idx3-ubyte", tmp_path / "rows-idx3-ubyte.gz"
    plain.write_bytes(idx(rows, kind))
    zipped.write_bytes(gzip.compress(plain.read_bytes()))
    for path in (plain, zipped):
        found = read(path)
        np.testing.assert_array_equal(found.rows, rows)
        assert (found.rows.dtype, found.support.kind) == (rows.dtype, support)


@pytest.mark.parametrize(
    ("dtype", "kept", "support"),
    [
        ("bool", "uint8", "levels"),
        ("int8", "int32", "counts"),
        (">u2", "int32", "counts"),
        (">i4", "int32", "counts"),
        ("uint32", "int64", "counts"),
        ("uint64", "int64", "counts"),
        (">u8", "int64", "counts"),
        ("float16", "float64", "real"),
        ("<f4", "float64", "real"),
        (">f8", "float64", "real"),
    ],
)
def test_numbers_of_any_dtype_are_taken_as_their_values(dtype: str, kept: str, support: str, tmp_path: Path) -> None:
    """Of either byte order, from .npy and .npz; what they are is what their kind says."""
    rows = (LEVELS % 2 if dtype == "bool" else LEVELS % 100 / (8 if "f" in dtype else 1)).astype(dtype)
    np.save(tmp_path / "rows.npy", rows)
    np.savez(tmp_path / "rows.npz", rows)
    for name in ("rows.npy", "rows.npz"):
        found = read(tmp_path / name)
        assert (found.rows.dtype.str, found.support.kind) == (np.dtype(kept).str, support)
        np.testing.assert_array_equal(found.rows, rows)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (np.full((30, 2), 2**63, np.uint64), "holds 9223372036854775808, more than int64 has room for"),
        (np.full((30, 2), -1, np.int8), "holds -1; whole numbers other than uint8 are counts, from 0"),
        (np.ones((30, 2), np.complex64), "holds complex64; booleans and uint8"),
        (np.ones((30, 2), "datetime64[s]"), r"holds datetime64\[s\]; booleans"),
        (np.full((30, 2), np.inf, np.float16), "isn't a finite number"),
    ],
)
def test_what_no_dtype_of_ours_holds_is_refused(rows: NDArray[Any], said: str, tmp_path: Path) -> None:
    """With what would be taken."""
    np.save(tmp_path / "rows.npy", rows)
    with pytest.raises(Unusable, match=said):
        read(tmp_path / "rows.npy")


def promising(kind: str) -> bytes:
    """A file whose head says that it holds a hundred billion numbers, and that has a few."""
    file = io.BytesIO()
    head = {"descr": "|u1", "fortran_order": False, "shape": (10**11, 10)}
    np.lib.format.write_array_header_1_0(file, head)
    npy = file.getvalue() + bytes(100)
    if kind != "npz":
        return npy
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as folder:
        folder.writestr("rows.npy", npy)
    return archive.getvalue()


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_a_head_that_promises_too_much_is_one_line(kind: str, tmp_path: Path) -> None:
    """No room is made for what isn't there, in a run's data and in the sample of an own model."""
    path = tmp_path / f"rows.{kind}"
    path.write_bytes(promising(kind))
    with pytest.raises(Unusable, match=f"not an .{kind} file of numbers"):
        read(path)
    with pytest.raises(Unusable, match=r"not an \.npy or \.npz file"):
        sample(path)


def test_an_array_of_an_archive_is_named(tmp_path: Path) -> None:
    """The only one needs no name; of two, one is chosen; one that isn't there is refused with those that are."""
    path = tmp_path / "rows.npz"
    np.savez(path, X=LEVELS / 2)
    np.testing.assert_array_equal(read(path).rows, LEVELS / 2)
    np.savez_compressed(path, X=LEVELS / 2, y=LEVELS)
    np.testing.assert_array_equal(read(path, array="y").rows, LEVELS)
    with pytest.raises(Unusable, match="holds the arrays X, y; say which one with `array`"):
        read(path)
    with pytest.raises(Unusable, match="holds no array 'Z'; it has X, y"):
        read(path, array="Z")


def spoilt(whole: bytes) -> dict[str, tuple[bytes, str]]:
    """Files that are no file of rows, and what is said of them."""
    text, pickled = io.BytesIO(), io.BytesIO()
    np.save(text, np.full((30, 2), "a"))
    np.save(pickled, np.array([{"a": 1}] * 30, object), allow_pickle=True)
    return {
        "truncated": (whole[:-5], "is truncated: its head says 24×8×12, 2304 bytes, and it has 2299"),
        "longer": (whole + b"\0", "is too long: its head says 24×8×12"),
        "no type": (b"\0\0\x05\x03" + whole[4:], "not an IDX file"),
        "head alone": (whole[:9], "not an IDX file"),
        "nothing": (b"", "is empty"),
        "text": (text.getvalue(), "holds <U1"),
        "pickled": (pickled.getvalue(), "not an .npy file of numbers"),
        "a broken archive": (b"PK\x03\x04" + b"\1" * 60, "not an .npz file of numbers"),
        "one axis": (idx(LEVELS[:, 0, 0], 8), "at least two axes"),
        "no rows": (idx(LEVELS[:0], 8), "rows along the first axis"),
        "below 0": (idx(LEVELS.astype(np.int32) - 3, 12), "counts, from 0"),
    }


@pytest.mark.parametrize("fault", spoilt(b""))
def test_a_broken_file_is_one_line(fault: str, tmp_path: Path) -> None:
    """Whatever is wrong with it, nothing in it is unpickled."""
    content, reason = spoilt(idx(LEVELS, 8))[fault]
    path = tmp_path / "rows"
    path.write_bytes(content)
    with pytest.raises(Unusable, match=reason) as refused:
        read(path)
    assert "\n" not in str(refused.value)


def test_a_broken_gzip_is_one_line(tmp_path: Path) -> None:
    """One that ends early, and one that is none."""
    path = tmp_path / "rows.gz"
    for content in (gzip.compress(idx(LEVELS, 8))[:-40], idx(LEVELS, 8)):
        path.write_bytes(content)
        with pytest.raises(Unusable, match="broken gzip"):
            read(path)


def drawn(folder: Path, mode: str = "L", count: int = 24) -> Path:
    """A folder of pictures, half of them in a folder of their own, in two formats."""
    (folder / "more").mkdir(parents=True)
    random = np.random.default_rng(1)
    for place in range(count):
        shape = (8, 12) if mode == "L" else (8, 12, 3)
        picture = Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8), mode=None)
        picture.save(folder / f"{place:03}.png" if place % 2 else folder / "more" / f"{place:03}.bmp")
    (folder / "notes.txt").write_text("not a picture, and no matter")
    return folder


@pytest.mark.parametrize(("mode", "shape"), [("L", (8, 12)), ("RGB", (3, 8, 12))])
def test_a_folder_of_pictures_is_rows_of_levels(mode: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    """Grey or coloured as the first one is, channels first, in the order of their names; resized where that is said."""
    folder = drawn(tmp_path / "pictures", mode)
    found = read(folder)
    assert (found.rows.shape, found.rows.dtype.name) == ((24, *shape), "uint8")
    assert (found.support.lowest, found.support.highest) == (0, 255)
    first = np.asarray(Image.open(folder / "001.png"))
    np.testing.assert_array_equal(found.rows[0], first if mode == "L" else np.moveaxis(first, -1, 0))
    assert read(folder, size=[4, 6]).rows.shape[-2:] == (4, 6)
    assert read(folder, colour="grey").rows.shape == (24, 8, 12)


def test_a_picture_is_the_way_up_that_its_camera_says(tmp_path: Path) -> None:
    """EXIF's orientation is applied, so that one held upright isn't one of another size."""
    folder = drawn(tmp_path / "pictures")
    lying = Image.fromarray(np.ascontiguousarray(np.rot90(LEVELS[0])))
    exif = Image.Exif()
    exif[274] = 6  # stored a quarter to the left of how it is to be seen
    lying.save(folder / "zz.png", exif=exif)
    np.testing.assert_array_equal(read(folder).rows[-1], LEVELS[0])


def deep(colour: int) -> bytes:
    """A PNG of 8×12 with 16 bits a level, of a colour type."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    width = {2: 6, 4: 4, 6: 8}[colour] * 12
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 12, 8, 16, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(8 * (1 + width)))) + chunk(b"IEND", b"")


def test_holes_in_numbers_are_seen(tmp_path: Path) -> None:
    """What is shown of them, and a run that takes them."""
    rows = LEVELS / 7
    rows[0, 0] = np.nan
    np.save(tmp_path / "rows.npy", rows)
    seen = look.look(tmp_path / "rows.npy")
    said = f"0 to {rows[1:].max():g}, and 12 of {rows.size} are missing"
    assert ("values", said) in [(*line,) for line in seen.lines]
    assert config.check(seen.run, "shown").missing is not None


def test_a_picture_that_is_not_like_the_others_is_named(tmp_path: Path) -> None:
    """Of another size, of more than 8 bits, or no picture at all; and a folder without any."""
    folder = drawn(tmp_path / "pictures")
    odd = folder / "zz.png"
    Image.fromarray(np.zeros((8, 9), np.uint8)).save(odd)
    with pytest.raises(Unusable, match=r"zz\.png: is 8×9, and 001\.png is 8×12; say `size: \[height, width\]`"):
        read(folder)
    Image.fromarray(np.zeros((8, 12), np.uint16)).save(odd)
    with pytest.raises(Unusable, match=r"zz\.png: has levels of more than 8 bits"):
        read(folder)
    for colour in (2, 4, 6):  # with colour, Pillow would cut them to 8 in silence
        odd.write_bytes(deep(colour))
        with pytest.raises(Unusable, match=r"zz\.png: has levels of more than 8 bits"):
            read(folder)
    odd.write_bytes(b"\x89PNG and no more")
    with pytest.raises(Unusable, match=r"zz\.png: not a picture that can be read"):
        read(folder)
    (tmp_path / "none").mkdir()
    with pytest.raises(Unusable, match="holds no picture"):
        read(tmp_path / "none")
    with pytest.raises(Unusable, match="is no folder"):
        sources.read(Folder(name="folder", path=str(tmp_path / "lost"), source="a test"))


@pytest.mark.parametrize("kind", ["folder", "levels", "black and white", "counts", "real"])
def test_the_config_that_is_shown_can_be_fitted(kind: str, tmp_path: Path) -> None:
    """`python -m training data PATH` prints a run for whatever lies there, and an epoch of it works."""
    path = drawn(tmp_path / "my pictures") if kind == "folder" else tmp_path / "rows.npy"
    rows: dict[str, NDArray[Any]] = {"levels": LEVELS}
    rows |= {"black and white": LEVELS // 128, "counts": LEVELS.astype(np.int32), "real": LEVELS / 7}
    if kind != "folder":
        np.save(path, rows[kind])
    answer = CliRunner().invoke(app, ["data", str(path)])
    assert answer.exit_code == 0, answer.output
    assert "8×12" in answer.output
    run = config.check(yaml.safe_load(answer.output[answer.output.index("name: ") :]), "pasted")
    assert run == config.check(look.look(path).run, "made")
    short = run.model_copy(update={"optimiser": config.Optimiser(epochs=1)})
    assert len(fit.fit(short, tmp_path / "run").figures) == 1
    assert data.of(run).event_shape == (8, 12)
