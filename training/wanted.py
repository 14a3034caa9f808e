"""Wanted: your own rows as a run's config names them: a file of numbers, a table, a folder of pictures. Reads none."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from training.part import Part, Size

Role = Literal["real", "count", "binary", "category", "skip"]
Transform = Literal["log", "quantile"]
ABSENT = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "?")
MOST_CATEGORIES = 256
Seed = Annotated[int, Field(ge=0)]


class File(Part):
    """Your own rows, in an .npy or .npz file or in an IDX one (as MNIST comes), gzipped or not. Each is taken once.

    uint8 and booleans for levels 0…highest, other whole numbers for counts, floats for real values and for tables of
    several kinds; of either byte order.

    A run with `missing` may have NaN for values that are absent.
    """

    name: Literal["file"]
    path: str
    source: str = Field(description="where the rows come from, for the manifest")
    highest: Annotated[int | None, Field(ge=1, le=255, description="the highest level of uint8 rows")] = None
    array: str | None = Field(None, description="which array of an .npz file; may be left out where it has one")
    split_seed: Seed = 0


class Column(Part):
    """What a column of a table is, where more is to be said than its role."""

    role: Role
    transform: Transform | None = Field(None, description="of real values, with its Jacobian in the density")
    categories: Annotated[list[str], Field(min_length=2, max_length=MOST_CATEGORIES)] | None = Field(
        None, description="in the order of their codes 0, 1, …; those that occur, in order, where left out"
    )
    unit: str | None = None

    @field_validator("categories", mode="before")
    @classmethod
    def _numbers_are_names(cls, given: object) -> object:
        """A category that is written as a whole number is a name like any other."""
        if not isinstance(given, list):
            return given
        return [str(one) if isinstance(one, int) and not isinstance(one, bool) else one for one in given]

    @model_validator(mode="after")
    def _hangs_together(self) -> Self:
        if self.transform and self.role != "real":
            raise ValueError(f"a transform is of real values, and the role is {self.role}")
        if self.categories and self.role not in ("binary", "category"):
            raise ValueError(f"categories are those of a category or of a binary column, and the role is {self.role}")
        if self.role == "binary" and self.categories and len(self.categories) != 2:
            raise ValueError(f"a binary column has two categories, not {len(self.categories)}")
        if self.categories and len(set(self.categories)) < len(self.categories):
            raise ValueError("a category is named twice")
        return self


class Table(Part):
    """Your own table, in a CSV or Parquet file: a line a row, a role for each column. Each row is taken once.

    Roles that aren't given are guessed, and `python -m training data FILE` shows them. Text and gaps are taken as they
    are: categories become codes, which the manifest names, and what is written as one of `absent` is missing.
    """

    name: Literal["table"]
    path: str
    source: str = Field(description="where the rows come from, for the manifest")
    columns: dict[str, Role | Column] = Field({}, description="by name: a role, or a role with more")
    absent: list[str] = Field(list(ABSENT), description="how a missing value is written")
    separator: Annotated[str | None, Field(min_length=1, max_length=1)] = None
    header: bool = Field(True, description="whether the first line names the columns; else they are 0, 1, …")
    split_seed: Seed = 0


class Folder(Part):
    """Your own pictures, all the files of a folder and its folders, of one size. Each is taken once.

    Grey pictures are (height, width) and coloured ones (3, height, width), in levels 0–255.
    """

    name: Literal["folder"]
    path: str
    source: str = Field(description="where the pictures come from, for the manifest")
    colour: Literal["grey", "rgb"] | None = Field(None, description="that of the first picture where left out")
    size: Annotated[list[Size], Field(min_length=2, max_length=2)] | None = Field(
        None, description="height and width that every picture is resized to; where left out, they must be of one size"
    )
    split_seed: Seed = 0
