"""Parts: what every part of a manifest is made of. Knows no model."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Part(BaseModel):
    """A part of the manifest: immutable, and nothing in it that this version does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Positive = Annotated[int, Field(ge=1)]
Size = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class File(Part):
    """A file of the artifact, checked before it is opened."""

    sha256: Digest
    bytes: Annotated[int, Field(ge=0)]
