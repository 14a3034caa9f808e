"""Part: what every part of a run is: immutable, strictly typed, and named in one line where it is wrong. Knows none."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Unusable(Exception):
    """Something that the person at the keyboard can mend; the message is one line that says how."""


class Part(BaseModel):
    """A part of a run: immutable, strictly typed, and nothing in it that we don't know."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


Size = Annotated[int, Field(ge=1, le=65_536)]
Sizes = Annotated[list[Size], Field(min_length=1, max_length=8)]
