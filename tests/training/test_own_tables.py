"""Your own tables: roles guessed, shown and overridden; what is wrong with one is a line that says where."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from training import config, data, sources
from training.__main__ import app
from training.config import Unusable
from training.sources import roles
from training.sources.found import Found
from training.wanted import Column, Table

ROWS = 60


def written(path: Path, **cells: str) -> Path:
    """A table of every kind of column; cells: what stands in the fourth row instead."""
    random = np.random.default_rng(0)
    names = ("id", "size", "price", "kind", "member", "visits", "note")
    with path.open("w") as file:
        file.write(",".join(names) + "\n")
        for place in range(ROWS):
            row = {
                "id": str(place + 7),
                "size": f"{random.normal(3, 2):.3f}",
                "price": f"{np.exp(2 * random.standard_normal()):.4f}",
                "kind": ("red", "blue", "green", "NA")[place % 4],
                "member": ("no", "yes")[int(random.random() < 0.4)],
                "visits": str(random.poisson(9)),
                "note": f"text {place}",
            }
            row |= cells if place == 3 else {}
            file.write(",".join(row[name] for name in names) + "\n")
    return path


def read(path: Path, **fields: Any) -> Found:
    """A table's rows, columns that say nothing skipped."""
    columns = {"id": "skip", "note": "skip", **fields.pop("columns", {})}
    plain = {"name": "table", "path": str(path), "source": "a test", "columns": columns, **fields}
    return sources.read(Table.model_validate(plain))


@pytest.mark.parametrize(
    ("cells", "role"),
    [
        (["1.5", "2", "-3"], Column(role="real")),
        (["1", "2", "-3"], Column(role="real")),
        (["5", "0", "2", "2"], Column(role="count")),
        (["0", "1", None, "1.0"], Column(role="binary")),
        (["1", "2", "2", "1"], Column(role="binary", categories=["1", "2"])),
        (["true", "false", "true"], Column(role="binary", categories=["false", "true"])),
        (["b", "a", "c", "a", "b", "a"], Column(role="category", categories=["a", "b", "c"])),
        (["4", "5", "6", "7"], Column(role="skip")),
        (["x", "x"], Column(role="skip")),
        ([None, None], Column(role="skip")),
        (["01234", "1234", "1234", "01234"], Column(role="binary", categories=["01234", "1234"])),
        ([f"name {place}" for place in range(50)], Column(role="skip")),
        ([str(np.exp(place / 4)) for place in range(40)], Column(role="real", transform="log")),
    ],
    ids=str,
)
def test_a_role_is_guessed_from_the_cells(cells: list[str | None], role: Column) -> None:
    """By what the values are, whatever is missing among them."""
    assert roles.guess(cells).column == role


def test_a_table_becomes_rows_of_numbers(tmp_path: Path) -> None:
    """Categories by their codes, gaps NaN, names and categories beside them; the same from a gzip."""
    path = written(tmp_path / "t.csv")
    found = read(path)
    assert found.rows.shape == (ROWS, 5)
    assert found.features is not None
    assert [feature.name for feature in found.features] == ["size", "price", "kind", "member", "visits"]
    assert found.features[2].categories == ("blue", "green", "red")
    np.testing.assert_array_equal(found.rows[:4, 2], [2, 0, 1, np.nan])
    assert set(found.rows[:, 3]) == {0, 1}
    assert found.rows[1, 0] == pytest.approx(float(path.read_text().splitlines()[2].split(",")[1]))
    zipped = tmp_path / "t.csv.gz"
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    np.testing.assert_array_equal(read(zipped).rows, found.rows)


def test_other_separators_marks_and_no_header_are_read(tmp_path: Path) -> None:
    """Semicolons and a byte order mark are noticed; what is missing, and that there is no header, is said."""
    path = tmp_path / "t.csv"
    path.write_text("\ufeffa;b\n1.5;2\n-999;3\n\n2.5;4\n")
    wanted = {"name": "table", "path": str(path), "source": "a test", "absent": ["-999"]}
    found = sources.read(Table.model_validate({**wanted, "columns": {"b": "count"}}))
    np.testing.assert_array_equal(found.rows, [[1.5, 2], [np.nan, 3], [2.5, 4]])
    path.write_text("1.5,2\n2.5,9\n3.5,5\n")
    assert sources.read(Table.model_validate({**wanted, "header": False})).rows.shape == (3, 2)


def test_what_is_missing_is_compared_as_a_number_among_numbers(tmp_path: Path) -> None:
    """-999 is -999.0 in a column of numbers, whatever its role; in a column of text it is text."""
    path = tmp_path / "t.csv"
    path.write_text("x,n,of,code\n1.5,4,2.0,a\n-999.0,-9.99e2,1,-999.0\n2.5,2,-999.00,b\n0.5,-999,1,-999\n")
    columns = {"x": "real", "n": "count", "of": "category", "code": "category"}
    plain = {"name": "table", "path": str(path), "source": "a test", "absent": ["-999"]}
    found = sources.read(Table.model_validate({**plain, "columns": columns}))
    nan = np.nan
    np.testing.assert_array_equal(found.rows, [[1.5, 4, 1, 1], [nan, nan, 0, 0], [2.5, 2, nan, 2], [0.5, nan, 0, nan]])
    assert found.features is not None
    assert [feature.categories for feature in found.features[2:]] == [("1", "2"), ("-999.0", "a", "b")]


def test_what_is_missing_is_a_number_wherever_the_config_says_numbers(tmp_path: Path) -> None:
    """However some of them are written; where nothing is said, a leading 0 makes text of all."""
    path = tmp_path / "t.csv"
    path.write_text("x,code\n007,007\n-999.0,-999.0\n2.5,-999\n0.5,8\n")
    plain = {"name": "table", "path": str(path), "source": "a test", "absent": ["-999"]}
    found = sources.read(Table.model_validate({**plain, "columns": {"x": "real", "code": "category"}}))
    np.testing.assert_array_equal(found.rows, [[7, 1], [np.nan, 0], [2.5, np.nan], [0.5, 2]])


@pytest.mark.parametrize(
    ("said", "cells", "codes"),
    [
        ("category", ["01234", "1234", "01234", "5"], [0, 1, 0, 2]),
        (["1234", "01234"], ["01234", "1234", "1234", "01234"], [1, 0, 0, 1]),
        (["2", "1.50"], ["1.5", "2.0", "2", "1.50"], [1, 0, 0, 1]),
        (["1", "b"], ["1", "b", "1", "b"], [0, 1, 0, 1]),
    ],
)
def test_categories_are_compared_as_what_they_are(
    said: str | list[str], cells: list[str], codes: list[int], tmp_path: Path
) -> None:
    """As numbers where all are numbers; as text where one isn't, or begins with a 0, as a postal code may."""
    path = tmp_path / "t.csv"
    path.write_text("a,x\n" + "".join(f"{cell},{place}.5\n" for place, cell in enumerate(cells)))
    column = said if isinstance(said, str) else {"role": "category", "categories": said}
    plain = {"name": "table", "path": str(path), "source": "a test", "columns": {"a": column}}
    np.testing.assert_array_equal(sources.read(Table.model_validate(plain)).rows[:, 0], codes)


@pytest.mark.parametrize("categories", [["1", "b"], ["1", "01"], ["2", "3"]])
def test_a_cell_that_is_no_category_is_refused(categories: list[str], tmp_path: Path) -> None:
    """1.0 is 1 among numbers alone."""
    path = tmp_path / "t.csv"
    path.write_text(f"a,x\n{categories[0]},1.5\n1.0,2.5\n{categories[1]},3.5\n")
    column = {"role": "category", "categories": categories}
    plain = {"name": "table", "path": str(path), "source": "t", "columns": {"a": column}}
    with pytest.raises(Unusable, match=r"line 3: column a holds '1\.0', which is none of its categories"):
        sources.read(Table.model_validate(plain))


def test_a_config_overrides_every_guess(tmp_path: Path) -> None:
    """Codes in the order that is stated, a count as categories, a number as text."""
    said = {
        "kind": {"role": "category", "categories": ["red", "green", "blue", "grey"]},
        "visits": "category",
        "size": {"role": "real", "unit": "m"},
        "price": "skip",
    }
    found = read(written(tmp_path / "t.csv"), columns=said)
    assert found.features is not None
    np.testing.assert_array_equal(found.rows[:3, 1], [0, 2, 1])
    assert found.features[0].unit == "m"
    assert (found.features[1].categories or ())[3] == "grey"
    numbers = [int(name) for name in found.features[3].categories or ()]
    assert numbers == sorted(numbers)


BAD: list[tuple[dict[str, Any], dict[str, str], str]] = [
    ({"size": "real"}, {"size": "tall"}, r"line 5: column size holds 'tall', which is no finite number, .* real"),
    ({"size": "real"}, {"size": "inf"}, r"line 5: column size holds 'inf'"),
    ({"visits": "count"}, {"visits": "2.5"}, r"line 5: column visits holds '2.5', which is no count"),
    ({"visits": "count"}, {"visits": "-1"}, r"line 5: column visits holds '-1', which is no count"),
    ({"kind": "real"}, {}, r"line 2: column kind holds 'red'"),
    ({"kind": "binary"}, {}, r"column kind is binary and has 3 different values, not two"),
    ({"kind": {"role": "category", "categories": ["red", "blue"]}}, {}, r"line 4: .* 'green', which is none of its"),
    ({"price": {"role": "real", "transform": "log"}}, {"price": "0"}, "column price holds 0, which has no logarithm"),
    ({"price": {"role": "count", "transform": "log"}}, {}, "a transform is of real values"),
    ({"kind": {"role": "real", "categories": ["a", "b"]}}, {}, "categories are those of a category"),
    ({"kind": {"role": "category", "categories": ["a", "a"]}}, {}, "named twice"),
    ({"hight": "real"}, {}, "there is no column 'hight'; it has id, size"),
    ({}, {"note": "a,b"}, "line 5 has 8 cells, and the first has 7"),
    ({}, {"note": '"open'}, "line .*: unexpected end of data"),
]


@pytest.mark.parametrize(("columns", "cells", "reason"), BAD, ids=[reason[:40] for *_, reason in BAD])
def test_a_wrong_cell_is_named(columns: dict[str, Any], cells: dict[str, str], reason: str, tmp_path: Path) -> None:
    """In one line: the file, the line, the column and what it holds."""
    path = written(tmp_path / "t.csv", **cells)
    with pytest.raises((Unusable, ValueError), match=reason) as refused:
        read(path, columns=columns)
    assert "\n" not in str(refused.value) or not isinstance(refused.value, Unusable)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("a,b\n", "names columns and has no rows"),
        ("a,a\n1,2\n", "two columns are named a"),
        ("a,\n1,2\n", "column 1 .* has no name"),
        ("1,2\n3,4\n", "say `header: false`"),
        (
            "a,b\n1.5,7\n2.5,7\n",
            "column b has no role that could be guessed .one value alone.; say `columns: {b: skip}`",
        ),
        ("a,b\n1.5,\n2.5,NA\n", "nothing but missing values"),
    ],
)
def test_a_file_that_is_no_table_is_one_line(text: str, reason: str, tmp_path: Path) -> None:
    """Each with what to do."""
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(Unusable, match=reason):
        sources.read(Table(name="table", path=str(path), source="a test"))


def test_a_column_that_never_varies_is_refused_though_a_role_is_given(tmp_path: Path) -> None:
    """With the value, and how to leave it out."""
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1.5,7\n2.5,7\n")
    with pytest.raises(Unusable, match=r"column b is 7 in every row; say `columns: {b: skip}`"):
        sources.read(Table(name="table", path=str(path), source="a test", columns={"b": "real"}))
    path.write_bytes(b"a,b\n\xff\xfe,7\n")
    with pytest.raises(Unusable, match="not UTF-8 text"):
        sources.read(Table(name="table", path=str(path), source="a test"))


def test_gaps_need_a_run_that_is_trained_for_them(tmp_path: Path) -> None:
    """The line says which column has how many."""
    columns: dict[str, Any] = {"id": "skip", "note": "skip"}
    plain = {
        "name": "t",
        "data": {"name": "table", "path": str(written(tmp_path / "t.csv")), "source": "a test", "columns": columns},
        "encoder": {"kind": "mlp", "sizes": [4]},
        "decoder": {"kind": "mlp", "sizes": [4]},
        "latent_size": 2,
        "likelihood": {"family": "mixed"},
    }
    with pytest.raises(Unusable, match=r"column kind has 15 missing values; say `missing: {}`"):
        data.of(config.check(plain, "a test"))
    assert np.isnan(data.of(config.check({**plain, "missing": {}}, "a test")).splits["fit"]).any()


def test_the_command_line_shows_the_roles_and_a_config_to_paste(tmp_path: Path) -> None:
    """What it prints is a run that is read, with every role said and `missing` where there are gaps."""
    answer = CliRunner().invoke(app, ["data", str(written(tmp_path / "my table.csv"))])
    assert answer.exit_code == 0, answer.output
    assert "numbers" in answer.output
    pasted = config.check(yaml.safe_load(answer.output[answer.output.index("name: my-table") :]), "pasted")
    assert isinstance(pasted.data, Table)
    assert pasted.data.columns["kind"] == Column(role="category", categories=["blue", "green", "red"])
    assert pasted.data.columns["price"] == Column(role="real", transform="log")
    assert pasted.missing is not None
    assert data.of(pasted).event_shape == (5,)
    refused = CliRunner().invoke(app, ["data", str(tmp_path / "none.csv")])
    assert (refused.exit_code, len(refused.stderr.splitlines())) == (2, 1)


def test_parquet_is_the_same_table(tmp_path: Path) -> None:
    """Numbers, text, booleans and nulls, each as a CSV would have it."""
    polars = pytest.importorskip("polars", reason="Parquet is read with polars")
    path = tmp_path / "t.parquet"
    polars.DataFrame(
        {"x": [1.25, None, 3.0, 2.5], "of": [*"bacc"], "ok": [True, False, True, True], "n": [4, 0, None, 1]}
    ).write_parquet(path)
    said = {"of": "category", "n": "count"}
    found = sources.read(Table.model_validate({"name": "table", "path": str(path), "source": "t", "columns": said}))
    np.testing.assert_array_equal(found.rows, [[1.25, 1, 1, 4], [np.nan, 0, 0, 0], [3, 2, 1, np.nan], [2.5, 2, 1, 1]])
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(Unusable, match="not a Parquet file that can be read") as refused:
        sources.read(Table.model_validate({"name": "table", "path": str(path), "source": "t"}))
    assert "\n" not in str(refused.value)
