"""Data: the rows that a run's config names: data sets that come with the packages here, or your own."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from training.part import Part
from training.wanted import File, Folder, Table


class Mnist(Part):
    """5,000 handwritten digits, 28×28 grey levels 0–255; all 70,000 with a path; or black and white, by chance.

    path: of the folder that MNIST's own files of images lie in, gzipped or not. Its test digits are the
    test split.

    binarise: drawn makes a pixel 1 with the probability level/255, drawn once for held-out rows and anew in every epoch
    for fitted ones (as Burda et al. 2016 do).
    """

    name: Literal["mnist"]
    binarise: Literal["drawn"] | None = None
    path: str | None = None
    split_seed: Annotated[int, Field(ge=0)] = 0


class Digits(Part):
    """1,797 handwritten digits, 8×8 with 17 levels; with `binarise`, 1 where the level is above it and 0 elsewhere.

    Digits that are the same in black and white are taken once.
    """

    name: Literal["digits"]
    binarise: Annotated[int | None, Field(ge=0, le=15)] = None
    split_seed: Annotated[int, Field(ge=0)] = 0


class BreastCancer(Part):
    """569 rows of 30 measurements; the model is fitted to the rows of the `normal` class alone."""

    name: Literal["breast-cancer"]
    normal: Literal["benign", "malignant"] = "benign"
    split_seed: Annotated[int, Field(ge=0)] = 0


class Diabetes(Part):
    """442 patients, 11 columns: sex, age and measurements of blood, and how the disease went on for a year."""

    name: Literal["diabetes"]
    split_seed: Annotated[int, Field(ge=0)] = 0


Data = Annotated[Mnist | Digits | BreastCancer | Diabetes | File | Table | Folder, Field(discriminator="name")]
